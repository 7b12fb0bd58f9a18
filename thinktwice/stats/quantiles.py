"""Quantiles of a quantity (latency) from additive histograms, with intervals that account for ties and repeated units.

Rows go into bins of a fixed relative width, and units into a fixed number of *groups* by their hash. Counts [G, B] add over
days and shards, because a unit stays in its group. The variance of a share between groups estimates its sampling error,
whatever the correlation of the rows of a unit.

Ties: measured times are rounded, and a quantile that jumps between two values has an interval of width 0 or without
    coverage. So the
distribution is the *mid-distribution*, F(v) - P(v)/2 at every occupied value, joined by straight lines: its quantiles are
asymptotically normal for discrete data too (Ma, Genton and Parzen 2011). The interval inverts that of the share below the quantile
(Woodruff 1952).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

GROUPS = 128  # of units; the variance of a share has one degree of freedom fewer
QuantileFlag = Literal["no_rows", "few_groups", "one_value", "beyond_the_data", "out_of_range", "not_finite"]


@dataclass(frozen=True)
class HistogramBins:
    """Bins of equal relative width between ``lowest`` and ``highest``, and one on either side."""

    lowest: float = 0.01
    highest: float = 1e6
    width: float = 0.01  # of a bin, as a share of its value

    @property
    def count(self) -> int:
        return math.ceil(math.log(self.highest / self.lowest) / math.log1p(self.width)) + 2

    def position(self, value: np.ndarray) -> np.ndarray:
        """Bin [R] of values [R]; 0 below ``lowest``, the last one at or above ``highest``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.floor(np.log(value / self.lowest) / math.log1p(self.width)) + 1
        inside = np.where(value < self.lowest, 0, inside)
        return np.clip(np.where(value >= self.highest, self.count - 1, inside), 0, self.count - 1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of rows by group of units and bin, and the sum of values of each bin. Histograms can be added.

    Attributes:
        counts: float64 [G, B].
        sums: float64 [B]; the mean of a bin is its value.
        invalid: rows whose value was not finite or was negative; they are in no bin.
    """

    bins: HistogramBins
    counts: np.ndarray
    sums: np.ndarray
    invalid: int = 0

    @classmethod
    def of_rows(
        cls, value: np.ndarray, group: np.ndarray, bins: HistogramBins | None = None, groups: int = GROUPS
    ) -> Histogram:
        """Histogram of rows with a value [R] and the group [R] (0..groups-1) of their unit."""
        bins = bins or HistogramBins()
        value = np.asarray(value, np.float64)
        valid = np.isfinite(value) & (value >= 0)
        value, group = value[valid], np.asarray(group)[valid]
        position = bins.position(value)
        counts = np.bincount(group * bins.count + position, minlength=groups * bins.count)
        if len(counts) != groups * bins.count:
            raise ValueError(f"groups must be numbers from 0 to {groups - 1}")
        sums = np.bincount(position, weights=value, minlength=bins.count)
        return cls(bins, counts.reshape(groups, bins.count).astype(np.float64), sums, int((~valid).sum()))

    def __add__(self, other: Histogram) -> Histogram:
        if self.bins != other.bins or self.counts.shape != other.counts.shape:
            raise ValueError("histograms with different bins or groups cannot be added")
        return Histogram(self.bins, self.counts + other.counts, self.sums + other.sums, self.invalid + other.invalid)


@dataclass(frozen=True)
class Quantile:
    """A quantile with its interval; ``se`` is the half width over Student's quantile of the groups. Flags give the reason
    for a missing number."""

    value: float
    low: float
    high: float
    se: float
    num_rows: int
    flags: tuple[QuantileFlag, ...] = ()


def quantile(histogram: Histogram, share: float, alpha: float = 0.05) -> Quantile:
    """The quantile of a ``share`` of the rows, with an interval of level 1 - ``alpha``.

    Raises:
        ValueError: ``share`` or ``alpha`` is not between 0 and 1.
    """
    if not 0 < share < 1 or not 0 < alpha < 1:
        raise ValueError(f"share {share} and alpha {alpha} must be between 0 and 1")
    rows = int(histogram.counts.sum())
    nothing = Quantile(float("nan"), float("-inf"), float("inf"), float("nan"), rows)
    if rows == 0:
        return _flagged(nothing, "not_finite" if histogram.invalid else "no_rows")
    occupied = np.flatnonzero(histogram.counts.sum(axis=0))
    values = histogram.sums[occupied] / histogram.counts[:, occupied].sum(axis=0)
    if len(occupied) == 1:
        return _flagged(Quantile(float(values[0]), float("-inf"), float("inf"), float("nan"), rows), "one_value")
    counts = histogram.counts[:, occupied]
    weight = counts.sum(axis=0)
    middle = (np.cumsum(weight) - weight / 2) / rows
    value = float(np.interp(share, middle, values))
    groups = counts.sum(axis=1)
    used = groups > 0
    if used.sum() < 10:
        return _flagged(Quantile(value, float("-inf"), float("inf"), float("nan"), rows), "few_groups")
    error = _error_of_share(counts[used], groups[used], values, value, share)
    student = float(stats.t.ppf(1 - alpha / 2, int(used.sum()) - 1))
    reach = student * error
    low, high = (float(np.interp(s, middle, values)) for s in (share - reach, share + reach))
    if not middle[0] <= share - reach or not share + reach <= middle[-1]:
        low = low if middle[0] <= share - reach else float("-inf")
        high = high if share + reach <= middle[-1] else float("inf")
        return _flagged(Quantile(value, low, high, float("nan"), rows), "beyond_the_data")
    flags: tuple[QuantileFlag, ...] = ()
    if histogram.bins.count - 1 in occupied and value >= histogram.bins.highest:
        flags = ("out_of_range",)
    if histogram.invalid:
        flags = (*flags, "not_finite")
    return Quantile(value, low, high, (high - low) / 2 / student, rows, flags)


def _error_of_share(counts: np.ndarray, groups: np.ndarray, values: np.ndarray, value: float, share: float) -> float:
    """Standard error of the mid-distribution at ``value``, from its variance between groups (a ratio of two sums)."""
    position = int(np.clip(np.searchsorted(values, value, side="right") - 1, 0, len(values) - 2))
    fraction = (value - values[position]) / (values[position + 1] - values[position])
    below = np.cumsum(counts, axis=1) - counts / 2  # [G, B] rows below the middle of each value
    inside = (1 - fraction) * below[:, position] + fraction * below[:, position + 1]
    residual = inside - share * groups
    g = len(groups)
    return float(np.sqrt(g / (g - 1) * np.sum((residual - residual.mean()) ** 2)) / groups.sum())


def _flagged(estimate: Quantile, flag: QuantileFlag) -> Quantile:
    return Quantile(estimate.value, estimate.low, estimate.high, estimate.se, estimate.num_rows, (flag,))
