"""Always-valid inference: against numerical mixtures, published properties, and simulated error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from thinktwice.stats.sample_ratio import ALPHA, CONCENTRATIONS, sample_ratio
from thinktwice.stats.sample_ratio import log_e_value as ratio_log_e
from thinktwice.stats.sequences import (
    always_valid_p,
    always_valid_p_above,
    log_e_value,
    log_e_value_above,
    one_sided_radius,
    tuned_time,
    two_sided_radii,
    two_sided_radius,
)

repeatable = settings(derandomize=True, deadline=None)


@settings(repeatable, max_examples=40)
@given(st.floats(-6, 6), st.floats(0.01, 100))
def test_e_values_are_their_mixtures(z: float, v: float) -> None:
    """The likelihood ratio of N(θ√v, 1) to N(0, 1) at z, averaged over a normal or half-normal θ."""

    def ratio(theta: float) -> float:
        return math.exp(theta * math.sqrt(v) * z - theta**2 * v / 2) * stats.norm.pdf(theta)

    whole = integrate.quad(ratio, -12, 12, limit=400, points=[0.0, z / math.sqrt(v) * v / (1 + v)])[0]
    half = 2 * integrate.quad(ratio, 0, 12, limit=400)[0]
    assert math.exp(log_e_value(z, v)) == pytest.approx(whole, rel=1e-6)
    assert math.exp(log_e_value_above(z, v)) == pytest.approx(half, rel=1e-6)


@repeatable
@given(st.floats(0.01, 100), st.sampled_from([0.001, 0.01, 0.05, 0.2]))
def test_radius_and_p_value_agree(information: float, alpha: float) -> None:
    radius = two_sided_radius(information, alpha)
    assert always_valid_p(radius, information, alpha) == pytest.approx(alpha, rel=1e-9)
    assert always_valid_p(-radius, information, alpha) == pytest.approx(alpha, rel=1e-9)
    assert always_valid_p_above(one_sided_radius(information, alpha), information, alpha) == pytest.approx(
        alpha, rel=1e-6
    )
    assert always_valid_p_above(-radius, information, alpha) == 1.0
    assert two_sided_radii(np.array([information]), alpha)[0] == pytest.approx(radius, rel=1e-12)
    assert stats.norm.isf(alpha / 2) < radius and one_sided_radius(information, alpha) < radius


def test_the_interval_is_tightest_where_it_is_tuned() -> None:
    for alpha in (0.01, 0.05):
        # Relative to the fixed width the half width is radius; in absolute terms, at fixed data, the smallest radius counts.
        around = [two_sided_radius(i, alpha) for i in (0.5, 0.9, 1.0, 1.1, 2.0)]
        assert min(around) == around[2]
        v = tuned_time(alpha)
        assert v == pytest.approx(math.log1p(v) - 2 * math.log(alpha), rel=1e-12)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_wrong_information(wrong: float) -> None:
    for function in (two_sided_radius, one_sided_radius):
        with pytest.raises(ValueError):
            function(wrong, 0.05)
    with pytest.raises(ValueError):
        tuned_time(1.0)


def test_false_alarms_at_any_time_stay_below_alpha() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(4000, 400)).cumsum(axis=1)
    n = np.arange(1, 401)
    z = steps / np.sqrt(n)
    assert (np.abs(z) >= two_sided_radii(n / 100, 0.05)).any(axis=1).mean() < 0.05
    one = np.array([one_sided_radius(i / 100, 0.05) for i in n])
    assert (z >= one).any(axis=1).mean() < 0.05
    assert (np.abs(z) >= 1.96).any(axis=1).mean() > 0.3  # peeking without it


def test_the_sample_ratio_is_a_dirichlet_mixture() -> None:
    """Against the integral over the prior for two arms."""
    for counts in ((30, 50), (0, 5), (400, 420)):
        total = 0.0
        for k, weight in CONCENTRATIONS:
            prior = stats.beta(k / 2, k / 2)

            def ratio(p: float, prior=prior, counts=counts) -> float:
                return float(np.exp(prior.logpdf(p) + counts[0] * np.log(2 * p) + counts[1] * np.log(2 * (1 - p))))

            total += weight * integrate.quad(ratio, 1e-9, 1 - 1e-9, points=[0.5], limit=500)[0]
        assert ratio_log_e(counts, np.array([0.5, 0.5])) == pytest.approx(math.log(total), abs=1e-6)


def test_the_sample_ratio_finds_small_and_gross_errors() -> None:
    assert sample_ratio((502_000, 498_000), (1, 1)).mismatch
    assert sample_ratio((140, 60), (1, 1)).mismatch
    assert not sample_ratio((500_600, 499_400), (1, 1)).mismatch
    assert sample_ratio((0, 0), (1, 1)).p == 1.0
    assert sample_ratio((1000, 500, 500), (2, 1, 1)).p == 1.0
    assert sample_ratio((335_000, 335_000, 330_000), (1, 1, 1)).mismatch
    found = sample_ratio((60, 40), (3, 1))
    assert found.expected == (75.0, 25.0) and found.counts == (60, 40)
    for counts, shares in (((1,), (1,)), ((1, 2), (1, 2, 3)), ((-1, 2), (1, 1)), ((1, 2), (0, 1))):
        with pytest.raises(ValueError):
            sample_ratio(counts, shares)


@repeatable
@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=5))
def test_the_order_of_arms_does_not_matter(counts: list[int]) -> None:
    shares = [1.0] * len(counts)
    found = sample_ratio(counts, shares)
    assert 0 <= found.p <= 1 and found.p == pytest.approx(sample_ratio(counts[::-1], shares).p, rel=1e-6)


def test_a_right_split_raises_few_alarms() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(500):
        first = rng.binomial(2000, 0.5, 28).cumsum()
        alarms += any(sample_ratio((a, 2000 * (d + 1) - a), (1, 1)).mismatch for d, a in enumerate(first) if d % 3 == 0)
    assert alarms / 500 < ALPHA
