"""All passes of U rows, and the two averages that aggregators share. Works in logit space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Passes:
    """The base pass of U rows and their K further ones, [U, K + 1] each, base pass first.

    z logits; weight how often a pass was drawn (or its probability), 0 for padding; support mean reliability of the fields
    that the pass keeps; confidence of the combinations a path was grown along (1 where the sampler knows none).
    """

    z: np.ndarray
    weight: np.ndarray
    support: np.ndarray
    confidence: np.ndarray


def weighted_mean(z: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean [U] of z [U, K + 1]; the base pass where no weight is left."""
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
