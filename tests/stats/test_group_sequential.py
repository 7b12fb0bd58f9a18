"""Group sequential boundaries: equal to published tables and to gsdesign's integration, at any look times."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from gsdesign import h1, hupdate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from thinktwice.stats.group_sequential import (
    at_stop,
    boundaries,
    crossing,
    drift_for_power,
    fixed_boundaries,
    obrien_fleming,
    pocock,
    repeated_p,
    spent_by,
)

ALPHA = 0.05


def by_gsdesign(information: list[float], spent: tuple[float, ...]) -> list[float]:
    """Two-sided boundaries with the integration of gsdesign (a port of R's gsDesign)."""
    found: list[float] = []
    grid = None
    before = 0.0
    for k, (info, total) in enumerate(zip(information, spent, strict=True)):

        def beyond(c: float, k: int = k, info: float = info, grid: tuple | None = grid) -> float:
            if grid is None:
                return 2 * float(stats.norm.sf(c))
            z, _, h = grid
            step = math.sqrt(info - information[k - 1])
            score = np.asarray(z) * math.sqrt(information[k - 1])
            edge = c * math.sqrt(info)
            return float(np.asarray(h) @ (special.ndtr((score - edge) / step) + special.ndtr((-score - edge) / step)))

        target, before = total - before, total
        critical = (
            optimize.brentq(lambda c, b=beyond, t=target: b(c) - t, 0, 12, xtol=1e-12) if target > 1e-15 else 12.0
        )
        found.append(critical)
        if k + 1 < len(information):
            grid = (
                h1(r=60, theta=0, info=info, a=-critical, b=critical)
                if grid is None
                else hupdate(60, 0, info, -critical, critical, 0, information[k - 1], grid)
            )
    return found


def test_published_tables() -> None:
    five = (0.2, 0.4, 0.6, 0.8, 1.0)
    # Lan-DeMets, O'Brien-Fleming type and Pocock type, two-sided 0.05, five even looks (gsDesign, Jennison & Turnbull).
    expected = {
        obrien_fleming: (4.8769, 3.3569, 2.6803, 2.2898, 2.0310),
        pocock: (2.4380, 2.4268, 2.4101, 2.3966, 2.3859),
    }
    for spending, bounds in expected.items():
        found = boundaries(five, spent_by(five, ALPHA, True, spending))
        assert found == pytest.approx(bounds, abs=1.5e-4)
    assert boundaries((1.0,), (0.05,))[0] == pytest.approx(1.959963984540054, abs=1e-10)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0.02, 1.0), min_size=1, max_size=8),
    st.lists(st.floats(0.02, 1.0), min_size=8, max_size=8),
    st.sampled_from([0.01, 0.05, 0.1]),
    st.sampled_from([obrien_fleming, pocock]),
)
def test_equal_to_gsdesign_at_any_looks(gaps: list[float], spacing: list[float], alpha: float, spending) -> None:
    """Information and spending times need not agree: α is spent by plan, information comes as it comes."""
    information = np.cumsum(gaps)
    fractions = np.cumsum(spacing[: len(gaps)])
    fractions /= fractions[-1]
    spent = spent_by(list(fractions), alpha, True, spending)
    found = boundaries(tuple(information), spent)
    expected = by_gsdesign(list(information), spent)
    for mine, theirs in zip(found, expected, strict=True):
        assert min(mine, 12.0) == pytest.approx(theirs, abs=1e-4) or (mine > 7 and theirs > 7)
    assert crossing(information, found).total == pytest.approx(alpha, abs=1e-9)


def test_looks_may_be_very_uneven() -> None:
    information = (0.001, 0.5, 0.5005, 1.0)
    spent = spent_by(information, ALPHA, True)
    found = boundaries(information, spent)
    assert found[0] == math.inf  # nothing to spend yet
    assert crossing(information, found).total == pytest.approx(ALPHA, abs=1e-8)
    for wrong in [(1.0, 1.0), (1.0, 0.5), (0.0, 1.0), (1.0, 1.00001), (math.nan, 1.0), ()]:
        with pytest.raises(ValueError):
            boundaries(wrong, (0.01,) * len(wrong))
    with pytest.raises(ValueError):
        boundaries((1.0, 2.0), (0.05,))
    with pytest.raises(ValueError):
        spent_by([0.5, 0.5], ALPHA, True)
    with pytest.raises(ValueError):
        spent_by([0.5], 1.5, True)


def test_crossing_probabilities_under_an_effect_are_simulated_ones() -> None:
    rng = np.random.default_rng(0)
    information = np.array([0.3, 0.55, 0.7, 1.0])
    bounds = boundaries(tuple(information), spent_by(list(information), ALPHA, True))
    drift = 2.8
    steps = np.diff(information, prepend=0)
    score = np.cumsum(rng.normal(drift * steps, np.sqrt(steps), (400_000, 4)), axis=1)
    z = score / np.sqrt(information)
    crossed = np.abs(z) >= bounds
    first = np.where(crossed.any(axis=1), crossed.argmax(axis=1), -1)
    found = crossing(information, bounds, drift)
    for k in range(4):
        at = first == k
        assert found.upper[k] == pytest.approx((at & (z[:, k] > 0)).mean(), abs=3e-3)
        assert found.lower[k] == pytest.approx((at & (z[:, k] < 0)).mean(), abs=3e-3)
    assert float(found.upper.sum()) == pytest.approx(0.8, abs=0.02)
    assert drift_for_power(information, bounds, float(found.upper.sum())) == pytest.approx(drift, abs=1e-6)
    with pytest.raises(ValueError):
        drift_for_power(information, bounds, 1.0)


def test_power_of_a_fixed_test() -> None:
    drift = drift_for_power((1.0, 2.0), fixed_boundaries(2, ALPHA), 0.8)
    assert drift * math.sqrt(2) == pytest.approx(1.959964 + 0.841621, abs=1e-4)


def test_the_repeated_p_value_crosses_alpha_with_the_boundary() -> None:
    information, fractions = (1.0, 2.0, 3.5), (0.2, 0.5, 0.8)
    bounds = boundaries(information, spent_by(fractions, ALPHA, False))
    for k in range(3):
        for shift, crossed in ((0.01, True), (-0.01, False)):
            z = [0.1, -0.2, 0.3]
            z[k] = bounds[k] + shift
            p = repeated_p(information[: k + 1], fractions[: k + 1], z[: k + 1], False)
            assert (p < ALPHA) == crossed
    assert repeated_p(information, fractions, [0.0, 0.0, 0.0], False) == 1.0
    assert repeated_p(information, fractions, [20.0, 20.0, 20.0], False) < 1e-10
    # An earlier crossing is not forgotten.
    assert repeated_p(information, fractions, [0.0, bounds[1] + 0.1, 0.0], False) < ALPHA


def test_boundaries_fall_as_alpha_rises() -> None:
    """What the repeated p-value rests on."""
    information = tuple(float(i) for i in range(1, 15))
    fractions = [i / 14 for i in information]
    rows = [boundaries(information, spent_by(fractions, a, True)) for a in (0.001, 0.01, 0.05, 0.1, 0.3)]
    assert all(np.all(np.array(b) <= np.array(a)) for a, b in pairwise(rows))


def test_what_is_left_at_the_stop() -> None:
    information, fractions = (1.0, 2.0, 3.0, 4.0), (0.25, 0.5, 0.75, 1.0)
    bounds = boundaries(information, spent_by(fractions, ALPHA, True))
    single = at_stop((4.0,), (1.96,), 2.5, ALPHA)
    assert single.p == pytest.approx(2 * stats.norm.sf(2.5), rel=1e-6) and single.value == pytest.approx(1.25, rel=1e-6)
    assert (single.low, single.high) == pytest.approx(((2.5 - 1.959964) / 2, (2.5 + 1.959964) / 2), rel=1e-5)
    early = at_stop(information[:2], bounds[:2], bounds[1] + 0.1, ALPHA)
    naive = (bounds[1] + 0.1) / math.sqrt(2.0)
    assert 0 < early.low < early.value < naive < early.high and early.p < ALPHA
    other = at_stop(information[:2], bounds[:2], -bounds[1] - 0.1, ALPHA)
    assert (other.value, other.low, other.high) == pytest.approx((-early.value, -early.high, -early.low), rel=1e-6)
    late = at_stop(information, bounds, 0.5, ALPHA)
    assert late.p > 0.5 and late.low < 0 < late.high


def test_the_estimate_at_the_stop_is_median_unbiased_and_its_interval_holds() -> None:
    rng = np.random.default_rng(1)
    information = np.array([1.0, 2.0, 3.0])
    bounds = boundaries(tuple(information), spent_by([1 / 3, 2 / 3, 1.0], ALPHA, True))
    drift, runs = 1.2, 250
    score = np.cumsum(rng.normal(drift, 1.0, (runs, 3)), axis=1)
    z = score / np.sqrt(information)
    below = inside = 0
    for path in z:
        crossed = np.abs(path) >= bounds
        k = int(crossed.argmax()) if crossed.any() else 2
        found = at_stop(tuple(information[: k + 1]), bounds[: k + 1], float(path[k]), ALPHA)
        below += found.value < drift
        inside += found.low <= drift <= found.high
    assert abs(below / runs - 0.5) < 0.1 and inside / runs > 0.91
