"""Uplift curves: whether a trigger finds the rows that a second opinion improves. The gain is accumulated in the order of
its signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thinktwice.stats.significance import REPLICATES, Interval, replicated_sums


def uplift_curve(signal: np.ndarray, change: np.ndarray, points: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of logloss over all R rows if a share of them gets the second opinion, largest signal first.

    Args:
        signal: [R] signal of the trigger.
        change: [R] change of a row's logloss by the second opinion (below 0 is better).

    Returns:
        shares [points + 1] from 0 to 1, and the mean change [points + 1] at each of them.
    """
    order = np.argsort(-signal, kind="stable")
    reached = np.concatenate([[0.0], np.cumsum(change[order])]) / len(change)
    shares = np.linspace(0.0, 1.0, points + 1)
    return shares, reached[np.round(shares * len(change)).astype(np.int64)]


def area(curve: tuple[np.ndarray, np.ndarray]) -> float:
    """Area between the straight line to the end of the curve (rows chosen by chance) and the curve, as a share of the
    curve's end: above 0 if the signal finds the rows that gain most. 0 if the end is 0."""
    shares, change = curve
    if change[-1] == 0:
        return 0.0
    return float(np.trapezoid(change - shares * change[-1], shares) / abs(change[-1]) * -1.0)


@dataclass(frozen=True)
class Band:
    """Confidence band of an uplift curve: bounds [points + 1] at its shares, and the interval of its area."""

    low: np.ndarray
    high: np.ndarray
    area: Interval


def uplift_band(
    signal: np.ndarray,
    change: np.ndarray,
    cluster: np.ndarray,
    points: int = 20,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Band:
    """Percentile band of :func:`uplift_curve`, pointwise, by a Poisson bootstrap of the clusters (users).

    The thresholds of the signal are those of the full sample. As drawn users have different shares of rows above them, a
    drawn curve is interpolated between its points. The area is not a share of the curve's end, which may be near 0, but in
    nats: :func:`area` times the size of that end, the mean gain over chance.

    Args:
        signal, change: [R], see :func:`uplift_curve`.
        cluster: [R] codes 0..G-1.
    """
    shares, reached = uplift_curve(signal, change, points)
    rows, groups = len(change), int(cluster.max()) + 1
    rank = np.empty(rows, np.int64)
    rank[np.argsort(-signal, kind="stable")] = np.arange(rows)
    cuts = np.round(shares * rows).astype(np.int64)
    cell = cluster * points + np.searchsorted(cuts, rank, side="right") - 1
    table = np.stack([np.bincount(cell, w, minlength=groups * points) for w in (None, change)])
    table = table.reshape(2, groups, points).transpose(1, 0, 2).reshape(groups, 2 * points).astype(np.float64)
    drawn = replicated_sums(table, seed, replicates)
    drawn = drawn[drawn[:, :points].sum(axis=1) > 0]
    zero = np.zeros((len(drawn), 1))
    total = drawn[:, :points].sum(axis=1, keepdims=True)
    share = np.concatenate([zero, np.cumsum(drawn[:, :points], axis=1) / total], axis=1)
    value = np.concatenate([zero, np.cumsum(drawn[:, points:], axis=1) / total], axis=1)
    curves = np.stack([np.interp(shares, x, y) for x, y in zip(share, value, strict=True)])
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(curves, tails, axis=0)
    gains = np.trapezoid(shares * curves[:, -1:] - curves, shares, axis=1)
    gain = float(np.trapezoid(shares * reached[-1] - reached, shares))
    bounds = np.quantile(gains, tails) if groups > 1 else (-np.inf, np.inf)
    return Band(low, high, Interval(gain, float(bounds[0]), float(bounds[1])))
