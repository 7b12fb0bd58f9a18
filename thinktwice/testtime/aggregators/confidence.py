"""Paths weigh by how well the combinations they were grown along are supported (MATT, reconstruction): a softmax of the
logarithm of that confidence at temperature 1, which is the confidence itself. The base pass is no path and weighs 0,
unless a path was the base pass."""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.aggregators.passes import Passes, weighted_mean


def combine(passes: Passes) -> np.ndarray:
    return weighted_mean(passes.z, passes.weight * passes.confidence)
