"""Many comparisons and several training seeds: what is left of a difference, and which difference could have been found."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from thinktwice.evaluate.significance import Interval


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values [M]: those below alpha are rejected together at the family-wise level alpha."""
    order = np.argsort(p, kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    out = np.empty(len(p))
    out[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return out


def two_sided_p(interval: Interval, confidence: float = 0.95) -> float:
    """Two-sided normal p-value of the value of an interval against 0; 1 where the interval is unbounded."""
    if not interval.bounded:
        return 1.0
    half = (interval.high - interval.low) / 2
    if half == 0:
        return 1.0 if interval.value == 0 else 0.0
    z = abs(interval.value) / half * float(stats.norm.ppf(0.5 + confidence / 2))
    return float(2 * stats.norm.sf(z))


def over_seeds(value: np.ndarray, within_se: np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean over S training seeds of a difference measured on the same rows, with its interval.

    The seed is a random effect: the spread between seeds shrinks with S and gets a t quantile of S - 1 degrees of freedom.
    ``within_se`` [S] is the error of the rows within a seed; as all seeds share the rows, it does not shrink with S. Both
    half widths are joined as independent errors. The spread between seeds holds some row noise too, so this errs on the
    wide side. With one seed only the rows count.
    """
    seeds = len(value)
    mean = float(np.mean(value))
    rows = float(stats.norm.ppf(0.5 + confidence / 2)) * float(np.sqrt(np.mean(np.square(within_se))))
    between = 0.0
    if seeds > 1:
        quantile = float(stats.t.ppf(0.5 + confidence / 2, seeds - 1))
        between = quantile * float(np.std(value, ddof=1)) / math.sqrt(seeds)
    half = math.hypot(rows, between)
    return Interval(mean, mean - half, mean + half)


def minimum_detectable(
    within_se: float, sd_seeds: float, seeds: int, *, power: float = 0.8, confidence: float = 0.95
) -> float:
    """The difference that a comparison over ``seeds`` training seeds finds with probability ``power``."""
    se = math.sqrt(within_se**2 + sd_seeds**2 / seeds)
    return float(stats.norm.ppf(0.5 + confidence / 2) + stats.norm.ppf(power)) * se
