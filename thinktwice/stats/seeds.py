"""Many comparisons and several training seeds: what is left of a difference, and which difference could have been found."""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, stats

from thinktwice.stats.significance import Interval

SMALLEST_TAIL = 1e-100


def two_sided_p(interval: Interval, confidence: float = 0.95, freedom: float = math.inf) -> float:
    """Two-sided p-value of the value of a symmetric interval against 0; 1 where the interval is unbounded.

    ``freedom`` are the degrees of freedom of the interval: clusters - 1 for ``paired_mean`` and ``paired_auc``.
    Thousands of them are as good as infinite; with few of them a normal tail understates small p-values many times over.
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
    ``within_se`` [S] is the error of the rows within a seed; as all seeds share the rows, it does not shrink with S. Both
    half widths are joined as independent errors. The spread between seeds holds some row noise too, so this errs on the
    wide side. With one seed only the rows count.
    """
    mean = float(np.mean(value))
    half = _reach((1 - confidence) / 2, *_errors(value, within_se))
    return Interval(mean, mean - half, mean + half)


def p_over_seeds(value: np.ndarray, within_se: np.ndarray) -> float:
    """Two-sided p-value of the mean over seeds: 1 minus the confidence at which the interval of :func:`over_seeds` just
    reaches 0; 1 where the rows have no bounded error.

    :func:`two_sided_p` would put a normal tail where seeds have one of few degrees of freedom: with five of them a
    p-value of 0.001 would come up to seven times too often, and a correction for many comparisons looks at such values.
    """
    mean, errors = abs(float(np.mean(value))), _errors(value, within_se)
    if mean == 0 or not math.isfinite(errors[0]):
        return 1.0
    if _reach(SMALLEST_TAIL, *errors) <= mean:
        return 2 * SMALLEST_TAIL if errors[0] or errors[1] else 0.0
    # By the logarithm of the tail: the search has to tell one tiny tail from another.
    tail = optimize.brentq(lambda e: _reach(math.exp(e), *errors) - mean, math.log(SMALLEST_TAIL), math.log(0.5))
    return min(1.0, 2 * math.exp(float(tail)))


def minimum_detectable(
    within_se: float, sd_seeds: float, seeds: int, *, power: float = 0.8, confidence: float = 0.95
) -> float:
    """The difference that :func:`over_seeds` finds (its interval excludes 0) with a probability of about ``power``, at
    least a half.

    Both quantiles of the seeds are Student's, so that few seeds cost what they cost. With one seed only the rows count.
    """
    errors = within_se, sd_seeds / math.sqrt(seeds) if seeds > 1 else 0.0, seeds - 1
    return _reach((1 - confidence) / 2, *errors) + _reach(1 - power, *errors)


def _errors(value: np.ndarray, within_se: np.ndarray) -> tuple[float, float, int]:
    """Standard error of the rows, standard error of the mean over seeds, and degrees of freedom of the latter."""
    seeds = len(value)
    between = float(np.std(value, ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0
    return float(np.sqrt(np.mean(np.square(within_se)))), between, seeds - 1


def _reach(tail: float, rows: float, between: float, freedom: int) -> float:
    """Half width that leaves the share ``tail`` (at most a half) above it."""
    seeds = float(stats.t.isf(tail, freedom)) * between if freedom > 0 else 0.0
    return math.hypot(float(stats.norm.isf(tail)) * rows, seeds)
