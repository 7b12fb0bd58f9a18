"""The ablations of the study: other vectors for dropped values, and paths that know nothing of support."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.testtime.fillers import (
    CERTAIN,
    BlindConfig,
    BlindLook,
    BlindPaths,
    Filled,
    Uniform,
    keep_rate,
    mean_vectors,
    row_vectors,
)
from tests.testtime import wide
from tests.testtime.wide import EXACT, UTTSI, but
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime import TestTimeConfig, base_pass
from thinktwice.testtime.base_pass import Filter, Plain
from thinktwice.testtime.reliability import DECODED
from thinktwice.testtime.samplers import SamplerInput
from thinktwice.testtime.samplers.bernoulli import KEEP_MIN
from thinktwice.testtime.samplers.paths import BASE_DRAWS
from thinktwice.testtime.triggers import Always

FEW = but(EXACT, trigger=Always(), shrink=False, base=Plain())


@pytest.fixture(scope="module")
def big() -> wide.Wide:
    return wide.build()


def subject(big: wide.Wide) -> TrialModel:
    return TrialModel(big.model, wide.CALIBRATION, big.reliability, big.extras)


def test_the_mean_filler_is_the_mean_of_the_training_rows(big: wide.Wide) -> None:
    found = mean_vectors(big.model, big.reliability)
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
    found = mean_vectors(big.model, reliability)
    assert torch.equal(found[0], big.model.fill()[0])
    assert not torch.equal(found[1], big.model.fill()[1])


def test_the_filter_puts_the_chosen_vectors_in(big: wide.Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_pass, "MIN_KEPT", 0.0)
    config = TestTimeConfig(mode="filter", base=Filter(min_count=5))
    batch = big.batch(slice(0, 128))
    keep = np.ones((128, 13), np.float32)
    keep[:, :10] = big.reliability.counts_of(batch.ids.numpy())[:, :10] >= 5
    for who, fill in (
        (subject(big), big.model.fill().detach()),
        (Filled.of(subject(big), "mean"), mean_vectors(big.model, big.reliability)),
    ):
        with torch.inference_mode():
            x = big.model.embed(batch)
            expected = big.model.score(x, torch.from_numpy(keep)[:, None], fill)[:, 0].double().numpy()
        np.testing.assert_allclose(who.engine(config).raw(batch).z, expected, atol=1e-6)


def test_the_denoiser_predicts_doubtful_fields_from_the_others_alone(big: wide.Wide) -> None:
    heads, fill = big.extras.heads, big.model.fill().detach()
    assert heads is not None
    with torch.inference_mode():
        x = big.model.embed(big.batch(slice(0, 40)))
        doubtful = torch.rand(40, wide.OPEN, generator=torch.Generator().manual_seed(0)) < 0.3
        found = row_vectors(big.model, heads, x, doubtful, fill)
        other = x.clone()
        other[:, : wide.OPEN][doubtful] += 5.0  # what is hidden cannot matter
        again = row_vectors(big.model, heads, other, doubtful, fill)
        shown = x.clone()
        shown[:, : wide.OPEN] = torch.where(doubtful[..., None], fill[: wide.OPEN], x[:, : wide.OPEN])
        expected = heads.predict(big.model.trunk(shown))
    torch.testing.assert_close(found[:, : wide.OPEN][doubtful], expected[doubtful])
    assert torch.equal(found, again)
    assert torch.equal(found[:, : wide.OPEN][~doubtful], fill[: wide.OPEN].expand(40, -1, -1)[~doubtful])
    assert torch.equal(found[:, wide.OPEN :], fill[wide.OPEN :].expand(40, -1, -1))


def test_paths_use_the_fill_of_their_own_row(big: wide.Wide) -> None:
    """With one doubtful field there is one path, in which the denoiser's prediction stands in its place."""
    counts = big.reliability.counts.copy()
    counts[wide.SIZES[0] :] = 255
    kappa = np.where(np.arange(13) == 0, wide.KAPPA, 0.0)
    reliability, heads = replace(big.reliability, counts=counts, kappa=kappa), big.extras.heads
    assert heads is not None
    denoised = Filled.of(replace(subject(big), reliability=reliability), "denoiser")
    raw = denoised.engine(FEW).raw(big.batch(slice(0, 100)))
    r = reliability.of(big.later.ids[:100])[:, : wide.OPEN]
    assert (r[:, 1:] == 1).all()
    doubtful = np.sqrt(r[:, 0]) < 0.95
    assert doubtful.sum() > 30
    assert np.array_equal(raw.num_paths, np.where(doubtful, 2, 1))
    for row in np.flatnonzero(doubtful)[:30]:
        chance = max(np.sqrt(r[row, 0]), KEEP_MIN)
        with torch.inference_mode():
            x = big.model.embed(big.batch(slice(row, row + 1)))
            fill = row_vectors(big.model, heads, x, torch.from_numpy(r[row : row + 1] < CERTAIN), big.model.fill())
            x[0, 0] = fill[0, 0]
            dropped = float(big.model.score(x))
        assert raw.z[row] == pytest.approx(chance * raw.z0[row] + (1 - chance) * dropped, abs=1e-5)


def test_the_denoiser_changes_escalated_rows_alone(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 300))
    mask, denoiser = (who.engine(UTTSI).score(batch) for who in (subject(big), Filled.of(subject(big), "denoiser")))
    escalated = mask.num_paths > 1
    assert escalated.any()
    assert np.array_equal(denoiser.num_paths, mask.num_paths)
    assert np.array_equal(denoiser.logit[~escalated], mask.logit[~escalated])
    assert not np.array_equal(denoiser.logit[escalated], mask.logit[escalated])


def test_blind_paths_keep_every_field_alike() -> None:
    rows = 4000
    doubt = SamplerInput(
        np.ones((rows, 4), bool),
        np.tile([0.0, 0.25, 0.64, 1.0], (rows, 1)),
        None,
        None,
        np.full(rows, 8),
        np.random.default_rng(0).integers(0, 2**63, rows).astype(np.uint64),
    )
    paths = Uniform(keep_rate=0.6).draw(doubt, 8)
    kept = (paths.mask * paths.weight[:, :, None]).sum(axis=(0, 1)) + (paths.base_weight - BASE_DRAWS).sum()
    np.testing.assert_allclose(kept / (rows * 8), 0.6, atol=0.01)


def test_a_configuration_of_blind_paths_comes_back_from_json_and_scores(big: wide.Wide) -> None:
    """As the record of a study holds it, and the table of costs reads it."""
    rate = keep_rate(subject(big), big.later.ids)
    look = BlindLook(trigger=Always(), opinion=BlindPaths(max_paths=4, sampler=Uniform(keep_rate=rate)))
    config = BlindConfig(mode="uttsi", second_look=look)
    again = BlindConfig.model_validate_json(config.model_dump_json())
    assert again == config and 0.2 < rate < 1
    batch = big.batch(slice(0, 100))
    found = big.engine(again).score(batch)
    assert (found.num_paths > 1).mean() > 0.5
    assert not np.array_equal(found.logit, big.engine(TestTimeConfig()).score(batch).logit)
