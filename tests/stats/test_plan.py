"""The planner: power and inflation as published, and what it promises is what is measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import NormalIndPower

from thinktwice.stats.difference import Metric
from thinktwice.stats.moments import Moments
from thinktwice.stats.plan import (
    days_needed,
    drift,
    horizon_factor,
    horizon_of,
    inflation,
    method_boundaries,
    plan,
    power_of,
    smallest_power_ratio,
)

METHODS = ("group_sequential", "sequence", "fixed")
CTR = Metric("clicks", "shown")


def log(users: int, days: int, seed: int = 0) -> Moments:
    rng = np.random.default_rng(seed)
    shown = rng.poisson(2.0 * days, users) + 1
    return Moments.of(("clicks", "shown"), np.stack([rng.binomial(shown, 0.05), shown], axis=1))


def test_drifts_and_inflation() -> None:
    assert drift("fixed", 1, 0.05, 0.8) == pytest.approx(1.959964 + 0.841621, abs=1e-4)
    assert inflation("fixed", 14, 0.05, 0.8) == pytest.approx(1.0, abs=1e-6)
    # Published inflation of the O'Brien-Fleming type at five looks is about 1.03.
    assert inflation("group_sequential", 5, 0.05, 0.9) == pytest.approx(1.03, abs=0.01)
    assert 1.7 < inflation("sequence", 14, 0.05, 0.8) < 2.0
    for method in METHODS:
        assert power_of(method, 14, 0.05, drift(method, 14, 0.05, 0.8)) == pytest.approx(0.8, abs=1e-6)


def test_the_power_asked_for() -> None:
    assert smallest_power_ratio("group_sequential", 14, 0.05, [0.8, 0.9]) >= 0.95
    assert smallest_power_ratio("sequence", 14, 0.05, [0.8, 0.9]) < 0.75
    assert 1.7 <= horizon_factor("sequence", 14, 0.05, 0.8) <= 1.9
    assert horizon_factor("group_sequential", 14, 0.05, 0.8) < 1.1


def test_a_mean_is_planned_as_by_statsmodels() -> None:
    rng = np.random.default_rng(1)
    moments = Moments.of(("x",), rng.normal(10, 3, (4000, 1)))
    horizon = horizon_of(7, moments, Metric("x"))
    found = plan(horizon, method="fixed", looks=1, alpha=0.05, power=0.8, effect=0.2)
    sd = math.sqrt(horizon.variance)
    solved = NormalIndPower().solve_power(nobs1=2000, alpha=0.05, power=0.8, alternative="larger")
    assert solved is not None
    expected = NormalIndPower().power(0.2 / sd, 2000, 0.05, alternative="two-sided")
    assert found.power == pytest.approx(expected, abs=1e-4)
    two = NormalIndPower().solve_power(nobs1=2000, alpha=0.05, power=0.8, alternative="two-sided")
    assert found.minimum_detectable / sd == pytest.approx(two, rel=1e-4)
    assert found.relative == pytest.approx(found.minimum_detectable / horizon.baseline)


def test_longer_and_larger_experiments_find_less() -> None:
    plans = [
        plan(horizon_of(d, log(5000, d), CTR), method="group_sequential", looks=7, alpha=0.05, power=0.8, effect=0.004)
        for d in (1, 7, 28)
    ]
    assert plans[0].minimum_detectable > plans[1].minimum_detectable > plans[2].minimum_detectable
    assert plans[0].power < plans[2].power  # type: ignore[operator]
    assert days_needed(plans, plans[1].minimum_detectable) == 7 and days_needed(plans, 1e-9) is None
    horizon = horizon_of(7, log(5000, 7), CTR)
    base = plan(horizon, method="fixed", looks=1, alpha=0.05, power=0.8)
    assert base.units_per_arm == 2500
    three = plan(horizon, method="fixed", looks=1, alpha=0.05, power=0.8, arms=3)
    assert three.units_per_arm == 1666 and three.minimum_detectable > base.minimum_detectable
    half = plan(horizon, method="fixed", looks=1, alpha=0.05, power=0.8, coverage=0.5)
    assert half.minimum_detectable == pytest.approx(base.minimum_detectable * math.sqrt(2), rel=1e-3)
    cuped = plan(horizon, method="fixed", looks=1, alpha=0.05, power=0.8, variance_reduction=0.75)
    assert cuped.minimum_detectable == pytest.approx(base.minimum_detectable / 2, rel=1e-9)


def test_what_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match="zero_variance"):
        horizon_of(7, Moments.of(("clicks", "shown"), np.ones((10, 2))), CTR)
    with pytest.raises(ValueError, match="no_units"):
        horizon_of(7, Moments.empty(("clicks", "shown")), CTR)
    horizon = horizon_of(7, log(100, 7), CTR)
    for wrong in ({"coverage": 0.0}, {"coverage": 0.01}, {"arms": 1}, {"variance_reduction": 1.0}):
        with pytest.raises(ValueError):
            plan(horizon, method="fixed", looks=1, alpha=0.05, power=0.8, **wrong)  # type: ignore[arg-type]


def test_boundaries_of_every_method() -> None:
    fractions = (0.5, 1.0)
    assert method_boundaries("fixed", fractions, 0.05)[0] == math.inf
    assert method_boundaries("group_sequential", fractions, 0.05)[1] < method_boundaries("sequence", fractions, 0.05)[1]
