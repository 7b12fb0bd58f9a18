"""Aggregators: one logit from a row's base pass and its paths, in logit space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from thinktwice.testtime.options import Options

BANDWIDTH_MIN = 0.05  # logits; without a minimum, a few paths that agree would outweigh all others


@dataclass(frozen=True)
class Passes:
    """The base pass of U rows and their K further passes, [U, K + 1] each, base pass first.

    z logits; weight how often a pass was drawn (or its probability), 0 for padding; support mean reliability of the fields
    that the pass keeps; confidence of the combinations a path was grown along (1 where the sampler knows none).
    """

    z: np.ndarray
    weight: np.ndarray
    support: np.ndarray
    confidence: np.ndarray


class Mean(Options):
    """The mean of all passes, each as often as it was drawn."""

    kind: Literal["mean"] = "mean"

    def combine(self, passes: Passes) -> np.ndarray:
        """One logit per row [U]."""
        return weighted_mean(passes.z, passes.weight)


class Consistency(Options):
    """Passes are weighted by their distance to the median and by the support of the fields they keep (UTTSI,
    reconstruction)."""

    kind: Literal["consistency"] = "consistency"

    def combine(self, passes: Passes) -> np.ndarray:
        """One logit per row [U]."""
        z, weight = passes.z, passes.weight
        middle = weighted_median(z, weight)[:, None]
        h = np.maximum(1.4826 * weighted_median(np.abs(z - middle), weight)[:, None], BANDWIDTH_MIN)
        return weighted_mean(z, weight * np.exp(-((z - middle) ** 2) / (2 * h**2)) * passes.support)


class Confidence(Options):
    """Paths are weighted by the support of the combinations they were grown along (MATT, reconstruction): a softmax of the
    logarithm of that confidence at temperature 1, which is the confidence itself. The base pass has weight 0, unless a path
    equals it."""

    kind: Literal["confidence"] = "confidence"

    def combine(self, passes: Passes) -> np.ndarray:
        """One logit per row [U]."""
        return weighted_mean(passes.z, passes.weight * passes.confidence)


def weighted_mean(z: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean [U] of z [U, K + 1]; the base pass if all weights are 0."""
    total = weight.sum(axis=1)
    mean = (weight * z).sum(axis=1) / np.where(total > 0, total, 1.0)
    return np.where(total > 0, mean, z[:, 0])


def weighted_median(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Median of each row of value [U, K] under weights [U, K]; between two values when the weight splits evenly."""
    order = np.argsort(np.where(weight > 0, value, np.inf), axis=1, kind="stable")
    rows = np.arange(len(value))
    ordered = value[rows[:, None], order]
    running = np.cumsum(weight[rows[:, None], order], axis=1)
    half = running[:, -1:] / 2
    slack = 1e-9 * (1 + half)
    low = (running >= half - slack).argmax(axis=1)
    high = (running > half + slack).argmax(axis=1)
    return 0.5 * (ordered[rows, low] + ordered[rows, high])
