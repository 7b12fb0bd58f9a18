"""The weighted median: a single stray path moves nothing."""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.aggregators.passes import Passes, weighted_median


def combine(passes: Passes) -> np.ndarray:
    return weighted_median(passes.z, passes.weight)
