"""Counters as numbers in the trunk: a state for unknown ones, the mask contract, and the same scores from every backend."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.models.synthetic import FIELDS
from tests.models.synthetic import random_rows as encoded_rows
from thinktwice.data.encoded import Batch
from thinktwice.data.evidence import Evidence
from thinktwice.errors import BundleError, DataError
from thinktwice.files import read_json, write_json
from thinktwice.models import BACKBONES, FieldSpace, ModelInfo, backbone_config, build_backbone, load_model, save_model
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends import Backend, Eager, onnx, parity_of, verify_sizes
from thinktwice.models.backends.backend import largest_rows, random_rows
from thinktwice.models.backends.folded import Folded, can_fold
from thinktwice.models.fields import CounterFields, CounterGroup
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.reliability import Reliability
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig

COUNTERS = CounterFields(
    definition="a" * 64,
    means=(1.0, -2.0, 0.5, 100.0, 0.0),
    sds=(2.0, 0.1, 1.0, 50.0, 3.0),
    groups=(
        CounterGroup(name="user counters", entity="user", columns=(0, 2)),
        CounterGroup(name="item counters", entity="item", columns=(1, 3, 4)),
    ),
)
SPACE = FIELDS.with_counters(COUNTERS)
BARE = FieldSpace(
    names=("a",), kinds=("categorical",), entities=("context",), protected=(False,), num_values=(9,)
).with_counters(COUNTERS)
NAN = float("nan")


def model_of(name: str = "deepfm", fields: FieldSpace = SPACE) -> Backbone:
    config = backbone_config(name=name, dim=6, hidden=(24, 16), init_sd=0.5)  # type: ignore[arg-type]
    return build_backbone(config, fields, seed=1).eval()


def with_counters(batch: Batch, counters: torch.Tensor | None) -> Batch:
    return replace(batch, counters=counters)


def test_the_fields_of_the_schema_stay_as_they_are() -> None:
    assert SPACE.names == (*FIELDS.names, "user counters", "item counters")
    assert SPACE.vectors == FIELDS.vectors and SPACE.sequences == FIELDS.sequences
    assert SPACE.without_counters() == FIELDS == FIELDS.without_counters()
    assert all(SPACE.protected[len(FIELDS.names) :])
    assert "counters" not in FIELDS.model_dump() and FieldSpace.model_validate(SPACE.model_dump(mode="json")) == SPACE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sds": (1.0, 1.0, 0.0, 1.0, 1.0)}, "greater than 0"),
        ({"means": (1.0,)}, "one number per counter"),
        ({"means": (NAN, 0.0, 0.0, 0.0, 0.0)}, "finite"),
        ({"groups": COUNTERS.groups[:1]}, "each counter once"),
        ({"definition": "x"}, "pattern"),
    ],
)
def test_a_damaged_description_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CounterFields.model_validate(COUNTERS.model_dump() | change)


@given(st.lists(st.floats(width=32, allow_infinity=False) | st.just(NAN), min_size=5, max_size=5))
def test_values_are_standardised_clipped_and_known_or_not(values: list[float]) -> None:
    scale = model_of().embedding.scale
    assert scale is not None
    standard, unknown = scale(torch.tensor([values], dtype=torch.float32))
    for column, value in enumerate(values):
        assert bool(unknown[0, column]) == math.isnan(value)
        expected = 0.0 if math.isnan(value) else (value - COUNTERS.means[column]) / COUNTERS.sds[column]
        assert float(standard[0, column]) == pytest.approx(min(max(expected, -4.0), 4.0), abs=1e-3, rel=1e-3)


@torch.inference_mode()
def test_a_group_without_a_known_counter_is_its_learned_vector() -> None:
    model, batch = model_of(), random_rows(model_of(), 4)
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]).repeat(4, 1)
    values[1, [0, 2]] = torch.nan  # user unknown
    values[2, 3] = torch.nan  # one of the item's
    values[3] = torch.nan
    x = model.embed(with_counters(batch, values))
    user, item = len(FIELDS.names), len(FIELDS.names) + 1
    fill = model.fill()
    assert torch.equal(x[1, user], fill[user]) and not torch.equal(x[1, item], fill[item])
    assert torch.equal(x[3, user:], fill[user:])
    assert not torch.equal(x[2, item], x[0, item]) and not torch.equal(x[2, item], fill[item])
    assert torch.equal(model.embed(with_counters(batch, None))[:, user:], fill[user:].expand(4, -1, -1))
    assert torch.isfinite(model.embed(largest_rows(model))).all()


@pytest.mark.parametrize("name", sorted(BACKBONES))
@torch.inference_mode()
def test_masking_a_group_is_not_knowing_it(name: str) -> None:
    model = model_of(name)
    batch = random_rows(model, 30)
    mask = torch.ones(30, 2, model.num_fields)
    mask[:, 1, len(FIELDS.names) :] = 0.0
    z = model.score(model.embed(batch), mask)
    torch.testing.assert_close(z[:, 0], model(batch), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(z[:, 1], model(with_counters(batch, None)), atol=1e-6, rtol=1e-5)
    assert (z[:, 0] - z[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((n, "folded") for n in ("lr", "fm", "deepfm")), *((n, k) for n in sorted(BACKBONES) for k in ("onnx", "eager"))],
)
@torch.inference_mode()
def test_backends_agree_and_give_a_row_the_same_bits(name: str, kind: str, tmp_path: Path) -> None:
    spaces = [SPACE] if kind == "onnx" else [SPACE, BARE]
    for fields in spaces:
        model = model_of(name, fields)
        backend: Backend
        if kind == "onnx":
            onnx.export(model, tmp_path)
            backend = onnx.load(tmp_path)(model, None, model.fill())
        else:
            assert kind != "folded" or can_fold(model)
            backend = {"folded": Folded, "eager": Eager}[kind](model, None, model.fill())
        assert parity_of(backend).holds and verify_sizes(backend)
        batch = random_rows(model, 300, seed=5)
        found = backend.logits(backend.read(batch))
        torch.testing.assert_close(found, model(batch), atol=1e-5, rtol=0)
        for rows in (slice(0, 1), slice(130, 143), torch.arange(299, 199, -1)):
            assert torch.equal(backend.logits(backend.read(batch.select(rows))), found[rows])
        shared = replace(batch.select(torch.zeros(300, dtype=torch.int64)), counters=batch.counters)
        shared = replace(
            shared,
            sequences={k: v[:1].expand(300, -1) for k, v in batch.sequences.items()},
            vectors={k: v[:1].expand(300, -1) for k, v in batch.vectors.items()},
        )
        repeated = replace(
            shared,
            sequences={k: v.contiguous() for k, v in shared.sequences.items()},
            vectors={k: v.contiguous() for k, v in shared.vectors.items()},
        )
        assert torch.equal(backend.logits(backend.read(shared)), backend.logits(backend.read(repeated)))
        missing = backend.logits(backend.read(with_counters(batch, None)))
        unknown = torch.full((300, 5), torch.nan)
        assert torch.equal(missing, backend.logits(backend.read(with_counters(batch, unknown))))


def test_a_stored_model_reads_its_counters_again(tmp_path: Path) -> None:
    model = model_of()
    save_model(tmp_path / "model", model, ModelInfo(stage="finetuned"))
    loaded, _ = load_model(tmp_path / "model", fields=FIELDS)
    assert loaded.fields == SPACE
    batch = random_rows(model, 50)
    with torch.inference_mode():
        assert torch.equal(loaded(batch), model(batch))
    content = read_json(tmp_path / "model" / "model.json")
    content["fields"]["counters"]["sds"][0] = -1.0
    write_json(tmp_path / "model" / "model.json", content)
    with pytest.raises(BundleError, match="train it again"):
        load_model(tmp_path / "model")
    save_model(tmp_path / "plain", model_of(fields=FIELDS), ModelInfo(stage="finetuned"))
    assert "counters" not in read_json(tmp_path / "plain" / "model.json")["fields"]


def engine_of(model: Backbone) -> Engine:
    rows = encoded_rows(400)
    reliability = Reliability.fit(rows.ids, rows.label, FIELDS).resized(model.num_fields)
    return Engine(model, reliability, TestTimeConfig(mode="counters"))


def test_the_engine_reads_counters_of_a_request() -> None:
    engine, model = engine_of(model_of()), model_of()
    rows = encoded_rows(20)
    counters = random_rows(model, 20).counters
    assert counters is not None and engine.reads_counters and not engine_of(model_of(fields=FIELDS)).reads_counters
    batch, values = rows.batch(slice(None)), counters.numpy()
    scored = engine.score(batch, evidence=Evidence(values))
    with torch.inference_mode():
        np.testing.assert_allclose(scored.logit, model(with_counters(batch, counters)).double().numpy(), atol=1e-5)
    assert np.array_equal(scored.corrected, ~np.isnan(values).all(axis=1)) and not scored.corrected.all()
    without = engine.score(batch)
    assert not without.corrected.any() and not np.array_equal(without.logit, scored.logit)
    nothing = engine.score(batch, evidence=Evidence(np.full_like(values, np.nan)))
    assert np.array_equal(nothing.logit, without.logit) and not nothing.corrected.any()
    for wrong in (values[:5], values[:, :4], values.astype(np.float64), np.full_like(values, np.inf)):
        with pytest.raises(DataError):
            engine.score(batch, evidence=Evidence(wrong))


def test_counters_are_unknown_in_a_share_of_training_rows() -> None:
    rows, config = encoded_rows(4000), FinetuneConfig()
    counters = torch.arange(20_000, dtype=torch.float32).view(4000, 5)
    batch = with_counters(rows.batch(slice(None)), counters)
    augmented = Augmenter("none", rows, SPACE, config)(batch, torch.arange(4000), torch.Generator().manual_seed(0))
    assert augmented.counters is not None
    unknown = augmented.counters.isnan()
    assert 0.05 < float(unknown.all(dim=1).float().mean()) < 0.10
    alone = unknown[:, [0, 2]].all(dim=1) ^ unknown[:, [1, 3, 4]].all(dim=1)  # one side alone, like an unknown value
    assert 0.01 < float(alone.float().mean()) < 0.08
    assert torch.equal(augmented.counters[~unknown], counters[~unknown]) and not counters.isnan().any()
    plain = [
        Augmenter("none", rows, FIELDS, config)(b, torch.arange(4000), torch.Generator().manual_seed(0))
        for b in (rows.batch(slice(None)), rows.batch(slice(None)))
    ]
    assert plain[0].counters is None and torch.equal(plain[0].ids, plain[1].ids)
