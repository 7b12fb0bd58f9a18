"""One logit from a row's base pass and its paths. Works in logit space.

Shapes: z [U, K + 1] logits, base pass first; weight [U, K + 1], 0 for padding; support [U, K + 1] mean reliability of the
fields that the pass keeps.
"""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.config import AggregatorKind

BANDWIDTH_MIN = 0.05  # logits; without it few agreeing paths shut out all others


def aggregate(kind: AggregatorKind, z: np.ndarray, weight: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The combined logit [U]: ``mean`` and ``median`` by weight, ``consistency`` also by nearness to the median and support."""
    if kind == "median":
        return weighted_median(z, weight)
    if kind == "consistency":
        middle = weighted_median(z, weight)[:, None]
        spread = 1.4826 * weighted_median(np.abs(z - middle), weight)[:, None]
        h = np.maximum(spread, BANDWIDTH_MIN)
        weight = weight * np.exp(-((z - middle) ** 2) / (2 * h**2)) * support
    total = weight.sum(axis=1)
    mean = (weight * z).sum(axis=1) / np.where(total > 0, total, 1.0)
    return np.where(total > 0, mean, z[:, 0])


def weighted_median(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Median of each row of value [U, K] under weights [U, K]; between two values when the weight splits evenly."""
    order = np.argsort(np.where(weight > 0, value, np.inf), axis=1, kind="stable")
    ordered = np.take_along_axis(value, order, axis=1)
    running = np.cumsum(np.take_along_axis(weight, order, axis=1), axis=1)
    half = running[:, -1:] / 2
    slack = 1e-9 * (1 + half)
    low = (running >= half - slack).argmax(axis=1)
    high = (running > half + slack).argmax(axis=1)
    rows = np.arange(len(value))
    return 0.5 * (ordered[rows, low] + ordered[rows, high])
