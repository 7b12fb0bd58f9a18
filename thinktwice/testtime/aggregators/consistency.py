"""Passes weigh by their nearness to the median and by the support of what they keep (UTTSI, reconstruction)."""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.aggregators.passes import Passes, weighted_mean, weighted_median

BANDWIDTH_MIN = 0.05  # logits; without it few agreeing paths shut out all others


def combine(passes: Passes) -> np.ndarray:
    z, weight = passes.z, passes.weight
    middle = weighted_median(z, weight)[:, None]
    h = np.maximum(1.4826 * weighted_median(np.abs(z - middle), weight)[:, None], BANDWIDTH_MIN)
    return weighted_mean(z, weight * np.exp(-((z - middle) ** 2) / (2 * h**2)) * passes.support)
