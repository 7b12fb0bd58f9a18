"""Paths in rounds: a row whose mean is known well enough stops, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.testtime import wide
from tests.testtime.wide import EXACT, UTTSI, but
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.aggregators import Mean
from thinktwice.testtime.opinions.paths import half_width
from thinktwice.testtime.samplers import Paths, SamplerInput
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.triggers import Always

FREE = but(UTTSI, trigger=Always(), shrink=False, aggregator=Mean())
NEVER_REACHED = 1e-9  # logits; a row with two equal logits is still so much the nearer


def test_half_width_is_the_t_interval_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1, (20, 9))
    for known in (1, 2, 5, 8):
        sample = z[:, : known + 1]
        low, high = stats.t.interval(0.90, known, loc=sample.mean(axis=1), scale=stats.sem(sample, axis=1))
        padded = np.where(np.arange(9)[None] <= known, z, 99.0)
        np.testing.assert_allclose(half_width(padded, np.full(20, known)), (high - low) / 2)
    assert np.isinf(half_width(z, np.zeros(20, int))).all()


def test_never_more_passes_than_without_and_the_same_score_where_as_many(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 400))
    free = big.engine(FREE).raw(batch)
    before = free.num_paths
    for stop_at in (NEVER_REACHED, 0.05, 0.5, 3.0):
        raw = big.engine(but(FREE, stop_at=stop_at)).raw(batch)
        assert (raw.num_paths <= before).all()
        same = raw.num_paths == free.num_paths
        np.testing.assert_allclose(raw.z[same], free.z[same], atol=1e-5)
        before = raw.num_paths
    assert before.sum() < 0.8 * free.num_paths.sum()


def test_a_row_stops_after_a_round_exactly_when_its_interval_is_narrow(big: wide.Wide) -> None:
    """Against the rule recomputed from the paths themselves: rounds of two, two, and the rest."""
    stop_at, batch = 1.0, big.batch(slice(0, 200))
    raw = big.engine(but(FREE, stop_at=stop_at)).raw(batch)
    z, weight, used = path_logits(big, FREE, 200)
    expected = used.copy()
    for row in range(200):
        for known in (2, 4):
            if known < used[row] and known < 8 and half_width(z[row : row + 1], np.array([known]))[0] < stop_at:
                expected[row] = known
                break
    close = np.array(
        [abs(half_width(z[r : r + 1], np.array([k]))[0] - stop_at) < 1e-4 for r in range(200) for k in (2, 4)]
    )
    assert not close.any()
    assert np.array_equal(raw.num_paths - 1, expected)
    assert {2, 4} <= set(expected[expected < used].tolist())
    scored = np.where(np.arange(9)[None] <= expected[:, None], weight, 0.0)  # the mean is of what was scored
    np.testing.assert_allclose(raw.z, (scored * z).sum(axis=1) / scored.sum(axis=1), atol=1e-5)


def path_logits(big: wide.Wide, config: TestTimeConfig, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits and weights [rows, 9] of the base pass and every path, each scored on its own, and the number of paths [rows]."""
    seen = {}
    draw = Bernoulli.draw

    def spy(self: Bernoulli, inputs: SamplerInput, max_paths: int) -> Paths:
        seen["paths"] = draw(self, inputs, max_paths)
        return seen["paths"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bernoulli, "draw", spy)
        raw = big.engine(config).raw(big.batch(slice(0, rows)))
    paths = seen["paths"]
    # The engine plans the most uncertain scores first.
    order = np.lexsort((np.arange(rows), -wide.entropy_of(raw.z0)))
    z, weight = np.zeros((rows, 9)), np.zeros((rows, 9))
    used = np.zeros(rows, int)
    for place, row in enumerate(order):
        used[row] = paths.used[place]
        z[row, 0], weight[row, 0], weight[row, 1:] = raw.z0[row], paths.base_weight[place], paths.weight[place]
        for k in range(used[row]):
            mask = np.ones((1, 1, 13), np.float32)
            mask[0, 0, : wide.OPEN] = paths.mask[place, k]
            z[row, k + 1] = big.score(row, mask)
    return z, weight, used


def test_rows_whose_paths_agree_stop_after_two(big: wide.Wide) -> None:
    raw = big.engine(but(FREE, stop_at=1e6)).raw(big.batch(slice(0, 200)))
    free = big.engine(FREE).raw(big.batch(slice(0, 200)))
    assert np.array_equal(raw.num_paths, np.minimum(free.num_paths, 3))
    assert (free.num_paths > 3).any()


def test_exact_rows_never_stop_early(big: wide.Wide) -> None:
    """Their paths carry probabilities: without all of them the mean would be of something else."""
    config, batch = but(EXACT, trigger=Always()), big.batch(slice(0, 400))
    free, stopping = big.engine(config).raw(batch), big.engine(but(config, stop_at=1e6)).raw(batch)
    r = big.reliability.of(big.later.ids[:400])[:, : wide.OPEN]
    kept = big.reliability.counts_of(big.later.ids[:400])[:, : wide.OPEN] >= 2
    exact = ((np.sqrt(r) < 0.95) & kept).sum(axis=1) <= 3
    assert 50 < exact.sum() < 380
    assert np.array_equal(stopping.num_paths[exact], free.num_paths[exact])
    assert (stopping.num_paths[~exact] <= 3).all()
    np.testing.assert_allclose(stopping.z[exact], free.z[exact], atol=1e-5)


def test_with_two_paths_there_is_no_second_round_to_save(big: wide.Wide) -> None:
    batch = big.batch(slice(0, 200))
    free, stopping = (big.engine(but(FREE, max_paths=2, stop_at=s)).raw(batch) for s in (0.0, 1e6))
    assert np.array_equal(stopping.z, free.z) and np.array_equal(stopping.num_paths, free.num_paths)


def test_rounds_score_what_one_call_scores(big: wide.Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``stop_at`` of 0 all paths go in one call; in rounds no path is scored twice."""
    widths: list[int] = []
    score_paths = big.model.score_paths
    monkeypatch.setattr(
        big.model, "score_paths", lambda x, mask, *rest: (widths.append(mask.shape[1]), score_paths(x, mask, *rest))[1]
    )
    batch = big.batch(slice(0, 20))
    big.engine(FREE).raw(batch)
    assert widths == [8]
    widths.clear()
    big.engine(but(FREE, stop_at=NEVER_REACHED)).raw(batch)
    assert widths == [2, 2, 4]
    widths.clear()
    big.engine(but(FREE, stop_at=NEVER_REACHED, max_paths=4)).raw(batch)
    assert widths == [2, 2]
