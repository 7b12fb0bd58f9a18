"""Differences from moments: equal to tea-tasting and statsmodels, mergeable, and never a silent number."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import tea_tasting as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from thinktwice.stats.difference import (
    Metric,
    arm_estimate,
    difference,
    explained_share,
    fixed_interval,
    relative_change,
    two_sided_p,
    two_sided_quantile,
)
from thinktwice.stats.moments import Moments, UnitSums

CTR = Metric("clicks", "shown")
PRE = Metric("pre_clicks", "pre_shown")
NAMES = ("clicks", "shown", "pre_clicks", "pre_shown")
repeatable = settings(derandomize=True, deadline=None)


def users(n: int, seed: int, lift: float = 0.0) -> np.ndarray:
    """Heavy-tailed users: clicks and impressions, now and before."""
    rng = np.random.default_rng(seed)
    rate = rng.beta(1, 15, n)
    activity = rng.pareto(1.5, n) + 1
    shown, pre_shown = rng.poisson(3 * activity) + 1, rng.poisson(3 * activity) + 1
    clicks = rng.binomial(shown, np.minimum(rate + lift, 1))
    return np.stack([clicks, shown, rng.binomial(pre_shown, rate), pre_shown], axis=1).astype(float)


@pytest.fixture(scope="module")
def arms() -> tuple[np.ndarray, np.ndarray]:
    return users(4000, 1), users(3500, 2, 0.004)


@pytest.mark.parametrize("covariate", [False, True])
@pytest.mark.parametrize("denominator", ["shown", None])
def test_equal_to_tea_tasting(arms: tuple[np.ndarray, np.ndarray], covariate: bool, denominator: str | None) -> None:
    frame = pd.concat(
        [pd.DataFrame(part, columns=list(NAMES)).assign(variant=place) for place, part in enumerate(arms)]
    )
    before = ("pre_clicks", "pre_shown" if denominator else None) if covariate else (None, None)
    metric = tt.RatioOfMeans("clicks", denominator, *before, use_t=False, equal_var=False)
    expected = tt.Experiment(m=metric).analyze(frame)["m"]
    control, treatment = (Moments.of(NAMES, part) for part in arms)
    found = difference(
        control, treatment, Metric("clicks", denominator), [Metric(before[0], before[1])] if before[0] else []
    )
    low, high, p = fixed_interval(found, 0.05)
    assert found.value == pytest.approx(expected.effect_size, rel=1e-9)
    assert (low, high) == pytest.approx((expected.effect_size_ci_lower, expected.effect_size_ci_upper), rel=1e-9)
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.control.value == pytest.approx(expected.control, rel=1e-9)
    assert found.treatment.value == pytest.approx(expected.treatment, rel=1e-9)
    assert (found.variance_reduction > 0.2) == covariate or denominator is None


def test_the_ratio_is_a_regression_clustered_by_user(arms: tuple[np.ndarray, np.ndarray]) -> None:
    """OLS of clicks on the arm with standard errors clustered by user is the delta method (up to its small-sample factor)."""
    rows = []
    for place, part in enumerate(arms):
        for unit, (clicks, shown) in enumerate(part[:300, :2].astype(int)):
            label = np.zeros(shown)
            label[:clicks] = 1
            rows.append(pd.DataFrame({"y": label, "arm": place, "user": f"{place}-{unit}"}))
    frame = pd.concat(rows)
    fit = smf.ols("y ~ arm", frame).fit(cov_type="cluster", cov_kwds={"groups": pd.factorize(frame.user)[0]})
    control, treatment = (Moments.of(NAMES, part[:300]) for part in arms)
    found = difference(control, treatment, CTR)
    factor = 600 / 599 * (len(frame) - 1) / (len(frame) - 2)
    assert found.value == pytest.approx(fit.params["arm"], rel=1e-9)
    assert found.se == pytest.approx(fit.bse["arm"] / math.sqrt(factor) * math.sqrt(300 / 299), rel=1e-9)


def test_a_mean_is_welch(arms: tuple[np.ndarray, np.ndarray]) -> None:
    control, treatment = (Moments.of(NAMES, part) for part in arms)
    found = difference(control, treatment, Metric("clicks"))
    expected = stats.ttest_ind(arms[1][:, 0], arms[0][:, 0], equal_var=False)
    assert found.z == pytest.approx(expected.statistic, rel=1e-9)
    assert two_sided_p(1.959963984540054) == pytest.approx(0.05, rel=1e-12)
    assert two_sided_quantile(0.05) == pytest.approx(1.959963984540054, rel=1e-12)


@repeatable
@given(st.lists(st.integers(0, 200), min_size=0, max_size=60), st.integers(0, 60), st.integers(0, 1000))
def test_moments_of_parts_add(counts: list[int], cut: int, shift: int) -> None:
    values = np.array([[c, c + shift] for c in counts], float).reshape(-1, 2)
    whole = Moments.of(("a", "b"), values)
    parts = Moments.of(("a", "b"), values[:cut]) + Moments.of(("a", "b"), values[cut:])
    assert parts.num_units == whole.num_units
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(parts.scatter, whole.scatter, rtol=1e-9, atol=1e-9)
    again = Moments.from_json(whole.to_json())
    np.testing.assert_array_equal(again.scatter, whole.scatter)


def test_large_means_cost_no_digits() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(10_000, 1))
    parts = [Moments.of(("a",), part + 1e9) for part in np.split(noise, 100)]
    total = sum(parts[1:], start=parts[0])
    assert total.covariance()[0, 0] == pytest.approx(np.var(noise, ddof=1), rel=1e-6)


@repeatable
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=60), st.integers(0, 60))
def test_days_of_a_unit_add_before_they_are_squared(rows: list[tuple[int, int]], cut: int) -> None:
    unit = np.array([u for u, _ in rows], np.int64)
    values = np.array([[v] for _, v in rows], float).reshape(-1, 1)
    whole = UnitSums.of_rows(["a"], unit, values)
    days = UnitSums.of_rows(["a"], unit[:cut], values[:cut]) + UnitSums.of_rows(["a"], unit[cut:], values[cut:])
    np.testing.assert_array_equal(days.unit, whole.unit)
    np.testing.assert_array_equal(days.values, whole.values)
    assert days.moments().num_units == len({u for u, _ in rows})


def test_wrong_arguments() -> None:
    one = Moments.of(("a",), np.ones((3, 1)))
    with pytest.raises(ValueError, match="cannot add"):
        one + Moments.of(("b",), np.ones((3, 1)))
    with pytest.raises(ValueError, match="no sum 'b'"):
        arm_estimate(one, Metric("b"))
    with pytest.raises(ValueError, match="must be"):
        Moments.of(("a", "b"), np.ones((3, 1)))
    with pytest.raises(ValueError, match="must be"):
        UnitSums.of_rows(["a"], np.arange(3), np.ones((2, 1)))
    with pytest.raises(ValueError, match="shapes"):
        Moments.from_json({"names": ["a"], "num_units": 1, "mean": [1, 2], "scatter": [[1]]})


def both(control: list[list[float]], treatment: list[list[float]]) -> tuple[Moments, Moments]:
    names = ("clicks", "shown")
    return tuple(Moments.of(names, np.array(part, float).reshape(-1, 2)) for part in (control, treatment))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("control", "treatment", "flag"),
    [
        ([], [[1, 2], [0, 2]], "no_units"),
        ([[1, 2], [0, 2]], [], "no_units"),
        ([[1, 2]], [[1, 2], [0, 2]], "one_unit"),
        ([[0, 0], [0, 0]], [[1, 2], [0, 2]], "zero_denominator"),
        ([[1, 2], [1, 2]], [[1, 2], [1, 2]], "zero_variance"),
        ([[1, 2], [2, 4]], [[1, 4], [2, 8]], "zero_variance"),  # the same ratio in every unit
        ([[math.nan, 2], [1, 2]], [[1, 2], [0, 2]], "not_finite"),
        ([[1, math.inf], [1, 2]], [[1, 2], [0, 2]], "not_finite"),
    ],
)
def test_data_that_cannot_answer_are_flagged(control: list, treatment: list, flag: str) -> None:
    with np.errstate(invalid="ignore"):
        found = difference(*both(control, treatment), CTR)
    assert flag in found.flags and not found.usable
    assert math.isnan(found.se) and math.isnan(found.z) and found.information == 0
    assert fixed_interval(found, 0.05) == (-math.inf, math.inf, 1.0)
    assert relative_change(found, 1.96)[1:3] == (-math.inf, math.inf)


def test_an_arm_that_lost_everything_is_judged_by_the_other_ones_variance() -> None:
    rng = np.random.default_rng(0)
    control = [[c, 20] for c in rng.binomial(20, 0.1, 500)]
    found = difference(*both(control, [[0, 20]] * 500), CTR)
    assert found.usable and found.borrowed and found.z < -10
    back = difference(*both([[0, 20]] * 500, control), CTR)
    assert back.usable and back.z == pytest.approx(-found.z)
    one = difference(*both([[0, 20]] * 500, [[0, 20]] * 499 + [[1, 20]]), CTR)
    assert abs(one.z) < 1  # one event is no evidence


def test_covariates_that_cannot_help_are_left_out(arms: tuple[np.ndarray, np.ndarray]) -> None:
    plain = difference(*(Moments.of(NAMES, part) for part in arms), CTR)
    for column, value in ((2, 0.0), (3, 0.0), (2, 1.0)):
        changed = [part.copy() for part in arms]
        for part in changed:
            part[:, column] = value
        if (column, value) == (2, 1.0):
            for part in changed:
                part[:, 3] = 1.0
        found = difference(*(Moments.of(NAMES, part) for part in changed), CTR, [PRE])
        assert (found.value, found.se, found.variance_reduction) == (plain.value, plain.se, 0.0)
    half = arms[0].copy()
    half[:, 2:] = 0  # a covariate that one arm lacks
    found = difference(Moments.of(NAMES, half), Moments.of(NAMES, arms[1]), CTR, [PRE])
    assert found.value == plain.value
    double = difference(*(Moments.of(NAMES, part) for part in arms), CTR, [PRE, PRE])
    once = difference(*(Moments.of(NAMES, part) for part in arms), CTR, [PRE])
    assert double.value == pytest.approx(once.value, rel=1e-9) and double.se == pytest.approx(once.se, rel=1e-9)


def test_variance_falls_as_the_correlation_says() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=200_000)
    y, x = base + rng.normal(size=base.size), base + rng.normal(size=base.size)
    moments = Moments.of(("y", "x"), np.stack([y, x], axis=1))
    rho = np.corrcoef(y, x)[0, 1]
    assert explained_share(moments, Metric("y"), [Metric("x")]) == pytest.approx(rho**2, rel=1e-9)
    half = [
        Moments.of(("y", "x"), np.stack([y, x], axis=1)[part]) for part in (slice(0, 100_000), slice(100_000, None))
    ]
    assert difference(half[0], half[1], Metric("y"), [Metric("x")]).variance_reduction == pytest.approx(0.25, rel=0.05)
    assert explained_share(moments, Metric("y"), []) == 0.0


@repeatable
@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(0, 10_000))
def test_the_relative_change_has_the_sign_of_the_difference(c: float, t: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [Moments.of(("a",), rng.normal(mean, 1.0, (400, 1))) for mean in (c, t)]
    found = difference(*parts, Metric("a"))
    value, low, high, flags = relative_change(found, 1.96)
    if flags:
        assert flags == ("baseline_near_zero",) and (low, high) == (-math.inf, math.inf)
        return
    assert low < value < high
    assert np.sign(value) == np.sign(found.value)
    # Both intervals exclude 0 together.
    assert (low > 0 or high < 0) == (abs(found.z) > 1.96)


def test_fieller_agrees_with_a_bootstrap() -> None:
    rng = np.random.default_rng(5)
    control, treatment = rng.normal(-2, 3, 2000), rng.normal(-1.5, 3, 2000)
    found = difference(*(Moments.of(("a",), part[:, None]) for part in (control, treatment)), Metric("a"))
    value, low, high, _ = relative_change(found, 1.959964)
    assert value > 0  # less negative is more
    means = [rng.choice(part, (4000, 2000)).mean(axis=1) for part in (control, treatment)]
    drawn = (means[1] - means[0]) / np.abs(means[0])
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)
