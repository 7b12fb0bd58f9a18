"""Many comparisons, several seeds."""

from __future__ import annotations

import numpy as np
import pytest

from thinktwice.evaluate.multiple import holm, minimum_detectable, over_seeds, two_sided_p
from thinktwice.evaluate.significance import Interval


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


def test_the_minimum_detectable_difference_is_found_with_its_power() -> None:
    least = minimum_detectable(0.1, 0.2, 4)
    assert least == pytest.approx(2.8016 * np.hypot(0.1, 0.1), rel=1e-3)
    drawn = np.random.default_rng(0).normal(least, np.hypot(0.1, 0.1), 20_000)
    assert (drawn / np.hypot(0.1, 0.1) > 1.96).mean() == pytest.approx(0.8, abs=0.01)
