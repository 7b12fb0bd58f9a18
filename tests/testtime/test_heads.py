"""Prediction heads: they find a field that follows from the others, and they are plain ridge regression."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.testtime import wide
from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import BundleError
from thinktwice.models import BACKBONES, FieldSpace, build_backbone
from thinktwice.testtime import heads
from thinktwice.testtime.heads import FieldHeads, fit_heads

FIELDS = FieldSpace(
    names=("a", "b", "free"),
    kinds=("categorical",) * 3,
    entities=("user", "item", "context"),
    protected=(False,) * 3,
    num_values=(9, 9, 5),
)


def rows_of_two_fields_that_follow(number: int, seed: int) -> EncodedRows:
    """Field b is a function of field a, the third is free."""
    rng = np.random.default_rng(seed)
    a, free = rng.integers(1, 9, number), rng.integers(1, 5, number)
    ids = np.stack([a, 1 + (3 * a) % 8, free], axis=1).astype(np.int32)
    return EncodedRows(ids, {}, {}, np.zeros(number, np.float32), a.astype(np.int64), np.arange(number))


@pytest.mark.parametrize(
    "name", sorted(set(BACKBONES) - {"lr", "fm"})
)  # their hidden states do not tell the fields apart
def test_a_field_that_follows_from_the_others_is_recovered(name: str) -> None:
    width = (
        256 if name == "hstu" else 64
    )  # an untrained transformer mixes the fields: a narrow state loses some of them
    size = wide.sizes(name).model_copy(update={"hidden": (width,)})
    model = build_backbone(size, FIELDS, seed=1).eval()
    fitted = fit_heads(model, rows_of_two_fields_that_follow(4000, 0), np.arange(3))
    found = []
    with torch.inference_mode():
        x = model.embed(rows_of_two_fields_that_follow(300, 1).batch(slice(None)))
        for field in range(3):
            shown = x.clone()
            shown[:, field] = model.fill()[field]
            found.append(F.cosine_similarity(fitted.predict(model.trunk(shown))[:, field], x[:, field], dim=1))
    assert float(found[0].mean()) > 0.95 and float(found[1].mean()) > 0.95
    assert float(torch.stack(found[:2]).min()) > 0.8
    assert float(found[2].mean()) < 0.6  # nothing says which of its values a free field has


def test_heads_are_the_ridge_regression_of_the_masked_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One field, against numpy on the very masks that the fit draws."""
    train = wide.rows(700, 5)
    model = build_backbone(wide.SIZE, wide.FIELDS, seed=1).eval()
    monkeypatch.setattr(heads, "BATCH", 300)
    fitted = fit_heads(model, train, np.array([2]))
    generator = torch.Generator().manual_seed(0)
    h, y = [], []
    for start in range(0, 700, 300):
        batch = train.batch(slice(start, start + 300))
        with torch.inference_mode():
            x = model.embed(batch)
            rate = torch.rand(len(batch), 1, generator=generator)
            keep = torch.rand(len(batch), 13, generator=generator) >= rate
            hidden = model.trunk(torch.where(keep[..., None], x, model.fill()))
        chosen = ~keep[:, 2] & (batch.ids[:, 2] > 0)
        h.append(hidden[chosen].double().numpy())
        y.append(x[chosen, 2].double().numpy())
    design = np.concatenate([np.concatenate(h), np.ones((sum(map(len, h)), 1))], axis=1)
    target = np.concatenate(y)
    pull = np.sqrt(heads.RIDGE * np.mean((design**2).sum(axis=0)))
    width = design.shape[1]
    expected = np.linalg.lstsq(
        np.concatenate([design, pull * np.eye(width)]), np.concatenate([target, np.zeros((width, 7))]), rcond=None
    )[0]
    assert 200 < len(target) < 500
    np.testing.assert_allclose(fitted.weight[0].numpy(), expected, atol=1e-5)


def test_predictions_are_affine_in_the_hidden_state() -> None:
    generator = torch.Generator().manual_seed(0)
    found = FieldHeads(torch.tensor([1, 3]), torch.randn(2, 5, 7, generator=generator))
    hidden = torch.randn(6, 4, generator=generator)
    for place in (0, 1):
        expected = torch.cat([hidden, torch.ones(6, 1)], dim=1) @ found.weight[place]
        torch.testing.assert_close(found.predict(hidden)[:, place], expected)


def test_fitting_changes_no_score_and_is_deterministic(big: wide.Wide) -> None:
    model = build_backbone(wide.SIZE, wide.FIELDS, seed=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = wide.rows(300, 8)
    first, second = (fit_heads(model, rows, np.arange(wide.OPEN)) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(first.weight, fit_heads(model, rows, np.arange(wide.OPEN), seed=1).weight)


def test_a_long_log_is_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_backbone(wide.SIZE, wide.FIELDS, seed=1).eval()
    rows = wide.rows(400, 8)
    monkeypatch.setattr(heads, "MAX_ROWS", 100)
    thinned = fit_heads(model, rows, np.arange(3))
    picked = rows.take(np.unique(np.linspace(0, 399, 100).astype(int)))
    assert torch.equal(thinned.weight, fit_heads(model, picked, np.arange(3)).weight)


def test_saved_and_loaded(big: wide.Wide, tmp_path: Path) -> None:
    found = big.extras.heads
    assert found is not None
    replace(found, weight=found.weight.transpose(0, 1).contiguous().transpose(0, 1)).save(tmp_path)  # any layout
    again = FieldHeads.load(tmp_path)
    assert torch.equal(again.weight, found.weight) and torch.equal(again.fields, found.fields)
    (tmp_path / heads.HEADS_FILE).write_bytes(b"no heads")
    with pytest.raises(BundleError, match=r"prediction heads .* cannot be read .*: fit the test-time parameters again"):
        FieldHeads.load(tmp_path)
