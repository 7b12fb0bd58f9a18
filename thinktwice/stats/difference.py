"""The difference of a metric between two arms, from moments per unit.

A metric is a ratio of two means over units, R = E[y] / E[x]: clicks per impression (CTR), clicks per request; without a denominator
it is a mean per unit. The delta method linearises it: with gradient g = (e_y - R e_x) / E[x] the variance of the estimate is
gᵀ Σ g / n, Σ the covariance of the sums between units (Deng, Knoblich and Lu 2018).

Covariates from before the experiment (CUPED, Deng et al. 2013) are ratios or means too: R - θᵀ(c - c̄) with θ = Σ_cc⁻¹ Σ_cR over both
arms, c̄ the mean over both arms. It is a fixed multiple of a quantity that no arm can have changed, so the estimate stays
unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from thinktwice.stats.moments import Moments

ROUNDING = 1e-13  # a standard error below this share of its value is rounding error

Flag = Literal[
    "no_units",  # an arm without data
    "one_unit",  # one unit does not show how much chance varies
    "zero_denominator",  # nothing to divide by
    "zero_variance",  # all units are equal: the data contain no noise to compare with
    "not_finite",  # the sums contain a number that is not finite
    "baseline_near_zero",  # a relative change has no bound
]


@dataclass(frozen=True)
class Metric:
    """Mean of ``numerator`` over mean of ``denominator``; None for a mean per unit."""

    numerator: str
    denominator: str | None = None


@dataclass(frozen=True)
class ArmEstimate:
    """A metric in one arm; ``value`` and ``se`` are nan if a flag gives a reason."""

    value: float
    se: float
    num_units: int
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Treatment minus control.

    Attributes:
        control, treatment: the metric in each arm, adjusted for the covariates.
        value: treatment - control.
        se: its standard error.
        borrowed: one arm does not vary (no click, no error at all), and the other arm's variance is used for both;
            otherwise an arm that lost everything could never be judged.
        variance_reduction: 1 - variance with covariates / variance without; 0 without covariates.
        flags: reasons why the difference is not usable; empty otherwise.
    """

    control: ArmEstimate
    treatment: ArmEstimate
    value: float
    se: float
    variance_reduction: float = 0.0
    flags: tuple[Flag, ...] = ()
    borrowed: bool = False

    @property
    def usable(self) -> bool:
        return not self.flags

    @property
    def z(self) -> float:
        """value / se; nan where not usable."""
        return self.value / self.se if self.usable else float("nan")

    @property
    def information(self) -> float:
        """1 / se²; 0 where not usable."""
        return 1 / self.se**2 if self.usable else 0.0


def arm_estimate(moments: Moments, metric: Metric) -> ArmEstimate:
    """A metric in one arm by the delta method."""
    value, gradient, flags = _linear(moments, metric)
    if flags:
        return ArmEstimate(float("nan"), float("nan"), moments.num_units, flags)
    variance = float(gradient @ moments.covariance() @ gradient)
    return ArmEstimate(value, float(np.sqrt(max(variance, 0.0) / moments.num_units)), moments.num_units)


def effective_units(moments: Moments, metric: Metric) -> float:
    """Effective number of units: n / (1 + cv²) of the units' weights (the denominator, else the value).

    A few very active users can dominate the ratio of thousands of users, and then the normal approximation fails.
    """
    column = moments.column(metric.denominator or metric.numerator)
    mean = float(moments.mean[column])
    if moments.num_units < 2 or not np.isfinite(mean) or mean == 0:
        return 0.0
    square = float(moments.scatter[column, column]) / moments.num_units
    return moments.num_units / (1 + square / mean**2) if np.isfinite(square) else 0.0


def difference(control: Moments, treatment: Moments, metric: Metric, covariates: Sequence[Metric] = ()) -> Difference:
    """Treatment minus control with its standard error, adjusted for covariates from before the experiment.

    A covariate that is constant, or undefined in either arm, is left out: it explains no variance.
    """
    arms = [arm_estimate(m, metric) for m in (control, treatment)]
    flags = tuple(dict.fromkeys(f for arm in arms for f in arm.flags))
    if flags:
        return Difference(arms[0], arms[1], float("nan"), float("nan"), 0.0, flags)
    plain = arms[0].se ** 2 + arms[1].se ** 2
    theta, used = _coefficients(control, treatment, metric, covariates)
    if used:
        both = control + treatment
        pooled = np.array([_linear(both, c)[0] for c in used])
        arms = [_adjusted(m, metric, used, theta, pooled) for m in (control, treatment)]
    value = arms[1].value - arms[0].value
    still = [arm.se <= ROUNDING * abs(arm.value) for arm in arms]
    if all(still):
        return Difference(arms[0], arms[1], value, float("nan"), 0.0, ("zero_variance",))
    if any(still):
        constant, varying = (0, 1) if still[0] else (1, 0)
        share = arms[varying].num_units / arms[constant].num_units
        arms[constant] = replace(arms[constant], se=arms[varying].se * float(np.sqrt(share)))
    variance = arms[0].se ** 2 + arms[1].se ** 2
    reduction = 1 - variance / plain if used and not any(still) else 0.0
    return Difference(arms[0], arms[1], value, float(np.sqrt(variance)), float(reduction), borrowed=any(still))


def explained_share(moments: Moments, metric: Metric, covariates: Sequence[Metric]) -> float:
    """Share of a metric's variance between units that covariates from before the experiment explain: the reduction by
    CUPED. 0 if undefined."""
    empty = arm_estimate(moments, metric)
    theta, used = _coefficients(moments, moments, metric, covariates)
    if empty.flags or not used or empty.se == 0:
        return 0.0
    pooled = np.array([_linear(moments, c)[0] for c in used])
    return 1 - (_adjusted(moments, metric, used, theta, pooled).se / empty.se) ** 2


def relative_change(change: Difference, multiplier: float) -> tuple[float, float, float, tuple[Flag, ...]]:
    """(treatment - control) / |control| with Fieller's interval: value, low, high, flags.

    ``multiplier`` is the number of standard errors of the absolute interval (1.96 for a fixed test at 5 %, the boundary of a
    sequential one), so either both intervals exclude 0 or neither does. The divisor is the magnitude of the baseline, so
    the sign is right for a negative baseline too. If the baseline cannot be distinguished from 0 the interval is (-inf,
    inf) and flagged.
    """
    if not change.usable:
        return float("nan"), float("-inf"), float("inf"), change.flags
    c, t, vc, vt = change.control.value, change.treatment.value, change.control.se**2, change.treatment.se**2
    m2 = multiplier**2
    # All r with (t - r c)² <= m² (vt + r² vc): between the roots of a r² - 2 b r + d when a > 0.
    a, b, d = c * c - m2 * vc, t * c, t * t - m2 * vt
    if a <= 0:
        value = (t - c) / abs(c) if c else float("nan")
        return value, float("-inf"), float("inf"), ("baseline_near_zero",)
    root = float(np.sqrt(max(b * b - a * d, 0.0)))
    low, high = (b - root) / a - 1, (b + root) / a - 1
    return ((t / c - 1), low, high, ()) if c > 0 else (1 - t / c, -high, -low, ())


def fixed_interval(change: Difference, alpha: float) -> tuple[float, float, float]:
    """Two-sided interval of level 1 - ``alpha`` and p-value of a single look: low, high, p."""
    if not change.usable:
        return float("-inf"), float("inf"), 1.0
    reach = two_sided_quantile(alpha) * change.se
    return change.value - reach, change.value + reach, two_sided_p(change.z)


def two_sided_quantile(alpha: float) -> float:
    """The z with P(|Z| > z) = alpha."""
    return float(-special.ndtri(alpha / 2))


def two_sided_p(z: float) -> float:
    """P(|Z| >= |z|)."""
    return float(2 * special.ndtr(-abs(z)))


def _linear(moments: Moments, metric: Metric) -> tuple[float, np.ndarray, tuple[Flag, ...]]:
    """Value of a ratio, its gradient [K] with respect to the means, and flags."""
    gradient = np.zeros(len(moments.names))
    top = moments.column(metric.numerator)
    bottom = None if metric.denominator is None else moments.column(metric.denominator)
    columns = [top] if bottom is None else [top, bottom]
    flags: tuple[Flag, ...] = ()
    if moments.num_units == 0:
        flags = ("no_units",)
    elif (
        not np.isfinite(moments.mean[columns]).all() or not np.isfinite(moments.scatter[np.ix_(columns, columns)]).all()
    ):
        flags = ("not_finite",)
    elif bottom is not None and moments.mean[bottom] == 0:
        flags = ("zero_denominator",)
    elif moments.num_units == 1:
        flags = ("one_unit",)
    if flags:
        return float("nan"), gradient, flags
    if bottom is None:
        gradient[top] = 1.0
        return float(moments.mean[top]), gradient, ()
    value = float(moments.mean[top] / moments.mean[bottom])
    gradient[top] += 1 / moments.mean[bottom]
    gradient[bottom] -= value / moments.mean[bottom]
    return value, gradient, ()


def _coefficients(
    control: Moments, treatment: Moments, metric: Metric, covariates: Sequence[Metric]
) -> tuple[np.ndarray, tuple[Metric, ...]]:
    """θ [C] of the covariates that vary and are defined in both arms, and these covariates."""
    if not covariates:
        return np.zeros(0), ()
    both = control + treatment
    covariance = both.covariance()
    used, gradients = [], []
    for covariate in covariates:
        gradient = _linear(both, covariate)[1]
        if any(_linear(arm, covariate)[2] for arm in (control, treatment)) or gradient @ covariance @ gradient <= 0:
            continue
        used.append(covariate)
        gradients.append(gradient)
    if not used:
        return np.zeros(0), ()
    g, target = np.array(gradients), _linear(both, metric)[1]
    # The minimum-norm solution if covariates are linearly dependent.
    theta = np.linalg.lstsq(g @ covariance @ g.T, g @ covariance @ target, rcond=1e-12)[0]
    return theta, tuple(used)


def _adjusted(
    moments: Moments, metric: Metric, used: tuple[Metric, ...], theta: np.ndarray, pooled: np.ndarray
) -> ArmEstimate:
    value, gradient, _ = _linear(moments, metric)
    effects = [_linear(moments, covariate) for covariate in used]
    value -= float(theta @ (np.array([v for v, _, _ in effects]) - pooled))
    gradient = gradient - theta @ np.array([g for _, g, _ in effects])
    variance = float(gradient @ moments.covariance() @ gradient)
    return ArmEstimate(value, float(np.sqrt(max(variance, 0.0) / moments.num_units)), moments.num_units)
