"""Many comparisons, several seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from thinktwice.stats.multiple import holm
from thinktwice.stats.seeds import minimum_detectable, over_seeds, p_over_seeds, two_sided_p
from thinktwice.stats.significance import Interval, paired_mean


def test_holm_on_a_textbook_example() -> None:
    # Holm (1979): 0.01, 0.02, 0.03, 0.04 -> 4 x 0.01, 3 x 0.02, 2 x 0.03, 0.04, made monotone
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.2])) == pytest.approx([0.2])


def test_holm_keeps_the_family_error() -> None:
    rng = np.random.default_rng(0)
    false = [(holm(rng.random(10)) < 0.05).any() for _ in range(4000)]
    assert 0.03 < np.mean(false) < 0.06


def test_p_value_of_an_interval() -> None:
    assert two_sided_p(Interval(1.96, 0.0, 3.92)) == pytest.approx(0.05, abs=1e-4)
    assert two_sided_p(Interval(0.0, -1.0, 1.0)) == pytest.approx(1.0)
    assert two_sided_p(Interval(1.0, float("-inf"), float("inf"))) == 1.0
    assert two_sided_p(Interval(0.0, 0.0, 0.0)) == 1.0
    assert two_sided_p(Interval(0.1, 0.1, 0.1)) == 0.0


def test_an_interval_over_seeds_covers_the_true_difference() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(3000):
        rows = rng.normal(0, 1.0)  # all seeds share the test rows
        value = 0.3 + rows + rng.normal(0, 0.7, 5)
        interval = over_seeds(value, np.full(5, 1.0))
        hits += interval.low <= 0.3 <= interval.high
    assert 0.945 <= hits / 3000 <= 0.985


def test_row_noise_does_not_shrink_with_seeds_and_one_seed_counts_its_rows_alone() -> None:
    one = over_seeds(np.array([0.5]), np.array([0.1]))
    assert (one.low, one.high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-3)
    many = over_seeds(np.full(50, 0.5), np.full(50, 0.1))
    assert many.high - many.low == pytest.approx(one.high - one.low)


def drawn(mean: float, within: float, sd: float, seeds: int, draws: int) -> np.ndarray:
    """Values [draws, seeds] of a comparison whose seeds share the test rows."""
    rng = np.random.default_rng(seeds)
    return mean + rng.normal(0, within, draws)[:, None] + rng.normal(0, sd, (draws, seeds))


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_minimum_detectable_difference_is_found_with_its_power(seeds: int) -> None:
    for within, sd in ((0.1, 0.2), (0.02, 0.2), (0.1, 0.0)):
        least = minimum_detectable(within, sd, seeds)
        intervals = [over_seeds(v, np.full(seeds, within)) for v in drawn(least, within, sd, seeds, 1500)]
        assert np.mean([i.significant for i in intervals]) == pytest.approx(0.8, abs=0.05)


def test_a_comparison_with_one_seed_detects_what_its_rows_allow() -> None:
    assert minimum_detectable(0.1, 0.0, 1) == minimum_detectable(0.1, 0.2, 1) == pytest.approx(0.28016, rel=1e-3)


def test_the_p_value_over_seeds_is_where_the_interval_touches_nothing() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        value, within = rng.normal(0.3, 0.2, 4), rng.uniform(0.02, 0.2, 4)
        interval = over_seeds(value, within, 1 - p_over_seeds(value, within))
        assert min(abs(interval.low), abs(interval.high)) == pytest.approx(0, abs=1e-6)
    alone = np.array([0.5])
    assert p_over_seeds(alone, np.array([0.2])) == pytest.approx(2 * stats.norm.sf(2.5))
    seeds = np.array([0.1, 0.2, 0.4])
    assert p_over_seeds(seeds, np.zeros(3)) == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue)


def test_small_p_values_over_few_seeds_are_as_rare_as_they_say() -> None:
    values = drawn(0.0, 0.02, 0.2, 3, 1500)
    within = np.full(3, 0.02)
    honest = np.array([p_over_seeds(v, within) for v in values])
    normal = np.array([two_sided_p(over_seeds(v, within)) for v in values])
    assert (honest < 0.05).mean() == pytest.approx(0.05, abs=0.015)
    assert (honest < 0.002).mean() < 0.006 < 0.012 < (normal < 0.002).mean()


def test_p_values_over_seeds_at_the_ends() -> None:
    assert p_over_seeds(np.array([0.0, 0.0]), np.array([0.1, 0.1])) == 1.0
    assert p_over_seeds(np.array([0.2, 0.2]), np.zeros(2)) == 0.0
    assert p_over_seeds(np.array([0.2, 0.3]), np.full(2, np.inf)) == 1.0
    assert 0 < p_over_seeds(np.array([5.0, 5.0]), np.full(2, 0.1)) < 1e-90


def test_the_p_value_of_few_clusters_is_that_of_student() -> None:
    difference = np.random.default_rng(2).normal(2.0, 0.5, 6)
    found = two_sided_p(paired_mean(difference, np.arange(6)), freedom=5)
    assert found == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)
    assert two_sided_p(paired_mean(difference, np.arange(6))) < found / 5
