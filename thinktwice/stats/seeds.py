"""Differences over several training seeds: p-values, intervals, and the difference that could have been detected."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

from thinktwice.stats.significance import Interval

SMALLEST_TAIL = 1e-100


def two_sided_p(interval: Interval, confidence: float = 0.95, freedom: float = math.inf) -> float:
    """Two-sided p-value of the value of a symmetric interval against 0; 1 where the interval is unbounded.

    ``freedom`` are the degrees of freedom of the interval: clusters - 1 for ``paired_mean`` and ``paired_auc``.
    Thousands are practically infinite; with few, a normal tail understates small p-values many times.
    """
    if not interval.bounded:
        return 1.0
    half = (interval.high - interval.low) / 2
    if half == 0:
        return 1.0 if interval.value == 0 else 0.0
    statistic = abs(interval.value) / half * float(stats.t.ppf(0.5 + confidence / 2, freedom))
    return float(2 * stats.t.sf(statistic, freedom))


def over_seeds(value: np.ndarray, within_se: np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean over S training seeds of a difference measured on the same rows, with its interval.

    The seed is a random effect: the spread between seeds shrinks with S and gets a t quantile of S - 1 degrees of freedom.
    ``within_se`` [S] is the error from the rows within a seed; as all seeds share the rows, it does not shrink with S. Both
    half widths are combined as independent errors. The spread between seeds includes some row noise, so the interval is
    conservative. With one seed only the error of the rows is used.
    """
    mean = float(np.mean(value))
    half = _reach((1 - confidence) / 2, *_errors(value, within_se))
    return Interval(mean, mean - half, mean + half)


def p_over_seeds(value: np.ndarray, within_se: np.ndarray) -> float:
    """Two-sided p-value of the mean over seeds: 1 minus the confidence at which the interval of :func:`over_seeds` just
    reaches 0; 1 if the error of the rows is unbounded.

    :func:`two_sided_p` would use a normal tail although seeds have few degrees of freedom: with five seeds a p-value of
    0.001 would occur up to seven times too often, and corrections for many comparisons use such values.
    """
    mean, errors = abs(float(np.mean(value))), _errors(value, within_se)
    if mean == 0 or not math.isfinite(errors[0]):
        return 1.0
    if _reach(SMALLEST_TAIL, *errors) <= mean:
        return 2 * SMALLEST_TAIL if errors[0] or errors[1] else 0.0
    # By the logarithm of the tail: the search must distinguish tiny tails.
    tail = optimize.brentq(lambda e: _reach(math.exp(e), *errors) - mean, math.log(SMALLEST_TAIL), math.log(0.5))
    return min(1.0, 2 * math.exp(float(tail)))


def minimum_detectable(
    within_se: float, sd_seeds: float, seeds: int, *, power: float = 0.8, confidence: float = 0.95
) -> float:
    """The difference that :func:`over_seeds` detects (its interval excludes 0) with a probability of about ``power``, at
    least 0.5.

    Both quantiles of the seeds are Student's, which accounts for few seeds. With one seed only the error of the rows is used.
    """
    errors = within_se, sd_seeds / math.sqrt(seeds) if seeds > 1 else 0.0, seeds - 1
    return _reach((1 - confidence) / 2, *errors) + _reach(1 - power, *errors)


def _errors(value: np.ndarray, within_se: np.ndarray) -> tuple[float, float, int]:
    """Standard error of the rows, standard error of the mean over seeds, and degrees of freedom of the latter."""
    seeds = len(value)
    between = float(np.std(value, ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    return float(np.sqrt(np.mean(np.square(within_se)))), between, seeds - 1


def _reach(tail: float, rows: float, between: float, freedom: int) -> float:
    """Half width with the share ``tail`` (at most 0.5) above it."""
    seeds = float(stats.t.isf(tail, freedom)) * between if freedom > 0 else 0.0
    return math.hypot(float(stats.norm.isf(tail)) * rows, seeds)
