"""Significance of differences. Everything is paired (both models on the same rows) and clustered by user, because the rows
of one user are not independent.

Shapes: R rows; ``cluster`` [R] holds codes 0..G-1 (see :func:`clusters_of`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from thinktwice.stats.metrics import calibration_bins, group_auc, row_logloss

REPLICATES = 1000
_CHUNK_CELLS = 4_000_000  # replicate weights in memory at once


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval. ``significant``: the interval excludes 0."""

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """False with fewer than two clusters: the sampling error is then unknown."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, float | bool | None]:
        """Value, bounds and significance; a number that is not finite becomes None."""
        numbers = {name: number if math.isfinite(number) else None for name, number in asdict(self).items()}
        return {**numbers, "significant": self.significant}


def clusters_of(user: np.ndarray) -> np.ndarray:
    """Cluster codes [R] of users [R]; a row without a user (-1) is its own cluster."""
    unknown = user < 0
    codes = np.unique(user, return_inverse=True)[1].astype(np.int64)
    codes[unknown] = codes.max(initial=0) + 1 + np.arange(int(unknown.sum()))
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def paired_mean(difference: np.ndarray, cluster: np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of row differences [R] with a cluster-robust interval (Student t with G - 1 degrees of freedom)."""
    mean = float(difference.mean())
    return influence_interval(mean, (difference - mean) / len(difference), cluster, confidence)


def paired_auc(
    label: np.ndarray, first: np.ndarray, second: np.ndarray, cluster: np.ndarray, confidence: float = 0.95
) -> Interval:
    """AUC of scores ``second`` minus AUC of ``first``, DeLong with the placements summed by cluster.

    With one row per cluster this is DeLong's interval. All nan with one class only.
    """
    if label.min() == label.max():
        return Interval(float("nan"), float("nan"), float("nan"))
    area_a, influence_a = auc_influence(label, first)
    area_b, influence_b = auc_influence(label, second)
    return influence_interval(area_b - area_a, influence_b - influence_a, cluster, confidence)


def auc_interval(label: np.ndarray, score: np.ndarray, cluster: np.ndarray, confidence: float = 0.95) -> Interval:
    """AUC of one score with its interval; all nan with one class only."""
    if label.min() == label.max():
        return Interval(float("nan"), float("nan"), float("nan"))
    area, influence = auc_influence(label, score)
    return influence_interval(area, influence, cluster, confidence)


def clustered_error(influence: np.ndarray, cluster: np.ndarray) -> float:
    """Standard error of an estimate from the contribution of every row to its error [R]; infinite with fewer than two clusters.

    For a paired mean it is ``(difference - mean) / R``, for a paired AUC the difference of two :func:`auc_influence`.
    """
    sums = np.bincount(cluster, weights=influence)
    groups = len(sums)
    return float(np.sqrt(groups / (groups - 1) * np.sum(sums**2))) if groups > 1 else math.inf


def standard_error(interval: Interval, freedom: int, confidence: float = 0.95) -> float:
    """The standard error behind an interval of :func:`paired_mean` or :func:`paired_auc` with ``freedom`` = clusters - 1 degrees
    of freedom; infinite if the interval is unbounded."""
    if not interval.bounded:
        return math.inf
    return (interval.high - interval.low) / 2 / float(stats.t.ppf(0.5 + confidence / 2, freedom))


def auc_influence(label: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray]:
    """AUC and the contribution of every row to its error [R] (DeLong's structural components, centred and scaled to sum)."""
    positive = label > 0.5
    m, n = int(positive.sum()), int((~positive).sum())
    ranks = stats.rankdata(score)
    influence = np.empty(len(label))
    # Share of the other class below a row: its rank among all rows minus its rank within its class.
    influence[positive] = (ranks[positive] - stats.rankdata(score[positive])) / n
    influence[~positive] = 1.0 - (ranks[~positive] - stats.rankdata(score[~positive])) / m
    area = float(influence[positive].mean())
    influence -= area
    influence[positive] /= m
    influence[~positive] /= n
    return area, influence


def bootstrap_differences(
    label: np.ndarray,
    logits: dict[str, np.ndarray],
    probabilities: dict[str, np.ndarray],
    cluster: np.ndarray,
    pairs: list[tuple[str, str]],
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> dict[tuple[str, str], dict[str, Interval]]:
    """Percentile intervals of the differences (second minus first) of logloss, gauc and ece, by a Poisson bootstrap of users.

    All columns share the drawn users, so differences are paired. ECE uses the bins of the full sample.

    Returns:
        (first, second) -> metric -> interval, unbounded with one user; gauc is omitted if no user has both classes.
    """
    groups = int(cluster.max()) + 1
    names = list(logits)
    rows = np.bincount(cluster, minlength=groups).astype(np.float64)
    sums: list[np.ndarray] = [rows[:, None]]
    for name in names:
        sums.append(np.bincount(cluster, weights=row_logloss(label, logits[name]), minlength=groups)[:, None])
    for name in names:
        area, size = group_auc(label, logits[name], cluster)
        mixed = ~np.isnan(area)
        sums.append(np.stack([np.where(mixed, area, 0) * size * mixed, size * mixed], axis=1))
    num_bins = 15
    for name in names:
        cell = cluster * num_bins + calibration_bins(label, probabilities[name], num_bins)
        gap = np.bincount(cell, weights=probabilities[name] - label, minlength=groups * num_bins)
        sums.append(gap.reshape(groups, num_bins))
    table = np.concatenate(sums, axis=1)
    drawn = replicated_sums(table, seed, replicates)
    full = table.sum(axis=0, keepdims=True)

    def statistics(totals: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        out: dict[str, dict[str, np.ndarray]] = {"logloss": {}, "gauc": {}, "ece": {}}
        offset = 1
        drawn_rows = np.where(totals[:, 0] > 0, totals[:, 0], np.nan)  # with few users, none may be drawn
        for index, name in enumerate(names):
            out["logloss"][name] = totals[:, offset + index] / drawn_rows
        offset += len(names)
        for name in names:
            out["gauc"][name] = totals[:, offset] / np.where(totals[:, offset + 1] > 0, totals[:, offset + 1], np.nan)
            offset += 2
        for name in names:
            out["ece"][name] = np.abs(totals[:, offset : offset + num_bins]).sum(axis=1) / drawn_rows
            offset += num_bins
        return out

    measured, replicated = statistics(full), statistics(drawn)
    result: dict[tuple[str, str], dict[str, Interval]] = {}
    for first, second in pairs:
        result[first, second] = {}
        for metric in ("logloss", "gauc", "ece"):
            value = float(measured[metric][second][0] - measured[metric][first][0])
            if np.isnan(value):
                continue
            if groups < 2:  # every draw is the same user: the sampling error is unknown
                result[first, second][metric] = Interval(value, float("-inf"), float("inf"))
                continue
            low, high = np.nanquantile(replicated[metric][second] - replicated[metric][first], [0.025, 0.975])
            result[first, second][metric] = Interval(value, float(low), float(high))
    return result


def influence_interval(
    value: float, influence: np.ndarray, cluster: np.ndarray, confidence: float = 0.95, freedom: int | None = None
) -> Interval:
    """Interval of an estimate from the contribution of every row to its error [R], summed by cluster.

    Student t with ``freedom`` degrees of freedom, by default G - 1; unbounded with none.
    """
    groups = int(cluster.max(initial=0)) + 1
    freedom = groups - 1 if freedom is None else freedom
    if groups < 2 or freedom < 1:
        return Interval(value, float("-inf"), float("inf"))
    reach = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * clustered_error(influence, cluster)
    return Interval(value, value - reach, value + reach)


def replicated_sums(table: np.ndarray, seed: int, replicates: int) -> np.ndarray:
    """Column sums of table [G, M] under Poisson(1) weights of its rows, [replicates, M]."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // len(table))
    parts = []
    for start in range(0, replicates, step):
        weight = rng.poisson(1.0, (min(step, replicates - start), len(table))).astype(np.float64)
        parts.append(weight @ table)
    return np.concatenate(parts)
