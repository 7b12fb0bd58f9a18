"""Planning of experiments: required length and detectable effects.

Everything follows from one number per method: the *drift* that its boundaries detect with the required power, times the
standard error expected at the horizon from the log. The inflation factor is the ratio of squared drifts: the units a
method needs relative to one look at a fixed horizon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from thinktwice.stats.difference import Metric, arm_estimate
from thinktwice.stats.group_sequential import boundaries, crossing, drift_for_power, fixed_boundaries, spent_by
from thinktwice.stats.moments import Moments
from thinktwice.stats.sequences import two_sided_radii

Method = Literal["group_sequential", "sequence", "fixed"]
TUNED = 1.0  # share of the horizon at which a planned sequence is tightest


@dataclass(frozen=True)
class Horizon:
    """Expected data of an experiment of a number of days, from a log.

    Attributes:
        days: length.
        num_units: units seen in that time.
        baseline: value of the metric.
        variance: between units, of the linearised metric (n · se²).
    """

    days: int
    num_units: int
    baseline: float
    variance: float


@dataclass(frozen=True)
class SamplePlan:
    """The effects that an experiment of one length can detect.

    Attributes:
        units_per_arm: enrolled units of each arm.
        minimum_detectable: absolute effect detected with the required power.
        relative: the same as a share of the baseline's magnitude; nan with a baseline of 0.
        power: power to detect the requested effect; None if no effect was requested.
        inflation: units needed by the method over those needed by a fixed horizon.
    """

    days: int
    units_per_arm: int
    baseline: float
    minimum_detectable: float
    relative: float
    power: float | None
    inflation: float


def horizon_of(days: int, moments: Moments, metric: Metric) -> Horizon:
    """A horizon from moments of the first ``days`` days of a log.

    Raises:
        ValueError: the metric cannot be estimated from the log.
    """
    estimate = arm_estimate(moments, metric)
    if estimate.flags or estimate.se == 0:
        raise ValueError(f"the log cannot plan {metric.numerator}: {', '.join(estimate.flags) or 'zero_variance'}")
    return Horizon(days, estimate.num_units, estimate.value, estimate.se**2 * estimate.num_units)


def method_boundaries(method: Method, fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Critical values of |Z| at looks at these shares of the horizon, the last one final."""
    if method == "fixed":
        return fixed_boundaries(len(fractions), alpha)
    if method == "sequence":
        return tuple(float(r) for r in two_sided_radii(np.array(fractions) / TUNED, alpha))
    return boundaries(fractions, spent_by(fractions, alpha, final=True))


@lru_cache(maxsize=256)
def drift(method: Method, looks: int, alpha: float, power: float) -> float:
    """Effect in standard errors at the horizon that ``looks`` evenly spaced looks detect with this power."""
    fractions = tuple((k + 1) / looks for k in range(looks))
    return drift_for_power(fractions, method_boundaries(method, fractions, alpha), power)


def inflation(method: Method, looks: int, alpha: float, power: float) -> float:
    """Units that a method needs relative to one look at a fixed horizon."""
    return (drift(method, looks, alpha, power) / drift("fixed", 1, alpha, power)) ** 2


def power_of(method: Method, looks: int, alpha: float, effect_in_errors: float) -> float:
    """Probability of detecting (with its sign) an effect of so many standard errors at the horizon."""
    fractions = tuple((k + 1) / looks for k in range(looks))
    return float(crossing(fractions, method_boundaries(method, fractions, alpha), abs(effect_in_errors)).upper.sum())


def plan(
    horizon: Horizon,
    *,
    method: Method,
    looks: int,
    alpha: float,
    power: float,
    arms: int = 2,
    coverage: float = 1.0,
    effect: float | None = None,
    variance_reduction: float = 0.0,
    comparisons: int | None = None,
) -> SamplePlan:
    """The plan of an experiment over this horizon.

    Args:
        arms: equal arms, control among them.
        coverage: share of all units that is enrolled.
        effect: absolute effect whose power is computed.
        variance_reduction: share of the variance explained by covariates (from a past experiment or log).
        comparisons: treatments or metrics that share α (Bonferroni); default all treatments.

    Raises:
        ValueError: a share is out of range, or an arm would have fewer than two units.
    """
    if arms < 2 or not 0 < coverage <= 1 or not 0 <= variance_reduction < 1:
        raise ValueError(
            f"{arms} arms, coverage {coverage}, variance reduction {variance_reduction}: at least 2 arms and shares up to 1 are needed"
        )
    units_per_arm = int(horizon.num_units * coverage / arms)
    if units_per_arm < 2:
        raise ValueError(
            f"{horizon.num_units} units at coverage {coverage} leave {units_per_arm} units an arm: at least 2 are needed"
        )
    level = alpha / (comparisons or arms - 1)
    se = math.sqrt(2 * horizon.variance * (1 - variance_reduction) / units_per_arm)
    least = drift(method, looks, level, power) * se
    relative = least / abs(horizon.baseline) if horizon.baseline else float("nan")
    achieved = None if effect is None else power_of(method, looks, level, effect / se)
    return SamplePlan(
        horizon.days, units_per_arm, horizon.baseline, least, relative, achieved, inflation(method, looks, level, power)
    )


def days_needed(plans: Sequence[SamplePlan], effect: float) -> int | None:
    """The shortest planned length that detects an absolute effect with the required power; None if none does."""
    enough = [p.days for p in plans if p.minimum_detectable <= abs(effect)]
    return min(enough) if enough else None


def horizon_factor(method: Method, looks: int, alpha: float, power: float) -> float:
    """Horizon, as a multiple of the fixed one, at which a method *with daily looks at the same pace* has this power.

    Unlike :func:`inflation` the number of looks grows with the horizon, and a sequence stays tuned to the planned one.
    """
    effect = drift("fixed", 1, alpha, power)

    def gap(factor: float) -> float:
        count = max(1, round(looks * factor))
        fractions = tuple((k + 1) / looks for k in range(count))
        bounds = (
            tuple(float(r) for r in two_sided_radii(np.array(fractions) / TUNED, alpha))
            if method == "sequence"
            else method_boundaries(method, tuple(f / fractions[-1] for f in fractions), alpha)
        )
        return float(crossing(fractions, bounds, effect).upper.sum()) - power

    steps = [k / looks for k in range(looks, 6 * looks)]
    return next((s for s in steps if gap(s) >= 0), math.inf)


def smallest_power_ratio(method: Method, looks: int, alpha: float, powers: Sequence[float]) -> float:
    """Power at the horizon over that of the fixed-horizon test, the smallest over effects with these fixed powers."""
    ratios = [power_of(method, looks, alpha, drift("fixed", 1, alpha, p)) / p for p in powers]
    return float(min(ratios))
