"""What stands in the place of a dropped value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.testtime import wide
from tests.testtime.wide import EXACT, UTTSI, but
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.fillers import FILLERS, row_vectors
from thinktwice.testtime.opinions.paths import CERTAIN
from thinktwice.testtime.reliability import DECODED
from thinktwice.testtime.samplers.bernoulli import KEEP_MIN

FEW = but(EXACT, trigger="always", shrink=False, min_count=0)


def test_the_mask_filler_is_the_learned_unknown_vector(big: wide.Wide) -> None:
    assert torch.equal(FILLERS["mask"](big.model, big.reliability), big.model.fill())


def test_the_mean_filler_is_the_mean_of_the_training_rows(big: wide.Wide) -> None:
    found = FILLERS["mean"](big.model, big.reliability)
    table, counts = big.model.embedding.table.detach().double(), DECODED[big.reliability.counts]
    for column, start in enumerate(big.reliability.offsets):
        rows = slice(int(start), int(start) + wide.SIZES[column])
        expected = (counts[rows, None] * table[rows].numpy()).sum(axis=0) / counts[rows].sum()
        np.testing.assert_allclose(found[column].numpy(), expected, atol=1e-6)
    assert torch.equal(found[11:], big.model.embedding.extra_fill)


def test_a_column_that_training_never_saw_keeps_its_learned_vector(big: wide.Wide) -> None:
    none = big.reliability.counts.copy()
    none[: wide.SIZES[0]] = 0
    reliability = replace(big.reliability, counts=none)
    found = FILLERS["mean"](big.model, reliability)
    assert torch.equal(found[0], big.model.fill()[0])
    assert not torch.equal(found[1], big.model.fill()[1])


def test_the_filter_puts_the_chosen_filler_in(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 128))
    keep = np.ones((128, 13), np.float32)
    keep[:, :10] = big.reliability.counts_of(batch.ids.numpy())[:, :10] >= 5
    for filler in ("mask", "mean"):
        fill = FILLERS[filler](big.model, big.reliability)  # type: ignore[index]
        with torch.inference_mode():
            x = big.model.embed(batch)
            expected = big.model.score(x, torch.from_numpy(keep)[:, None], fill)[:, 0].double().numpy()
        config = TestTimeConfig(mode="filter", min_count=5, min_kept=0.0, filler=filler)
        np.testing.assert_allclose(big.engine(config).raw(batch).z, expected, atol=1e-6)


def test_the_denoiser_predicts_doubtful_fields_from_the_others_alone(big: wide.Wide) -> None:
    heads, fill = big.extras.heads, big.model.fill().detach()
    assert heads is not None
    with torch.inference_mode():
        x = big.model.embed(big.batch(slice(0, 40)))
        uncertain = torch.rand(40, wide.OPEN, generator=torch.Generator().manual_seed(0)) < 0.3
        found = row_vectors(big.model, heads, x, uncertain, fill)
        other = x.clone()
        other[:, : wide.OPEN][uncertain] += 5.0  # what is hidden cannot matter
        again = row_vectors(big.model, heads, other, uncertain, fill)
        shown = x.clone()
        shown[:, : wide.OPEN] = torch.where(uncertain[..., None], fill[: wide.OPEN], x[:, : wide.OPEN])
        expected = heads.predict(big.model.trunk(shown))
    torch.testing.assert_close(found[:, : wide.OPEN][uncertain], expected[uncertain])
    assert torch.equal(found, again)
    assert torch.equal(found[:, : wide.OPEN][~uncertain], fill[: wide.OPEN].expand(40, -1, -1)[~uncertain])
    assert torch.equal(found[:, wide.OPEN :], fill[wide.OPEN :].expand(40, -1, -1))


def test_paths_use_the_fill_of_their_own_row(big: wide.Wide) -> None:
    """With one uncertain field there is one path, in which the denoiser's prediction stands in its place."""
    counts = big.reliability.counts.copy()
    counts[wide.SIZES[0] :] = 255
    kappa = np.where(np.arange(13) == 0, wide.KAPPA, 0.0)
    reliability, heads = replace(big.reliability, counts=counts, kappa=kappa), big.extras.heads
    assert heads is not None
    raw = Engine(big.model, reliability, but(FEW, filler="denoiser"), wide.CALIBRATION, big.extras).raw(
        big.batch(slice(0, 100))
    )
    r = reliability.of(big.later.ids[:100])[:, : wide.OPEN]
    assert (r[:, 1:] == 1).all()
    uncertain = np.sqrt(r[:, 0]) < 0.95
    assert uncertain.sum() > 30
    assert np.array_equal(raw.num_paths, np.where(uncertain, 3, 1))  # base pass, denoiser, path
    for row in np.flatnonzero(uncertain)[:30]:
        chance = max(np.sqrt(r[row, 0]), KEEP_MIN)
        with torch.inference_mode():
            x = big.model.embed(big.batch(slice(row, row + 1)))
            fill = row_vectors(big.model, heads, x, torch.from_numpy(r[row : row + 1] < CERTAIN), big.model.fill())
            x[0, 0] = fill[0, 0]
            dropped = float(big.model.score(x))
        assert raw.z[row] == pytest.approx(chance * raw.z0[row] + (1 - chance) * dropped, abs=1e-5)


def test_one_denoiser_pass_serves_all_paths_of_a_row(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 300))
    mask, denoiser = (big.engine(but(UTTSI, filler=f)).score(batch) for f in ("mask", "denoiser"))
    escalated = mask.num_paths > 1
    assert escalated.any()
    assert np.array_equal(denoiser.num_paths[escalated], mask.num_paths[escalated] + 1)
    assert np.array_equal(denoiser.logit[~escalated], mask.logit[~escalated])
    assert not np.array_equal(denoiser.logit[escalated], mask.logit[escalated])
