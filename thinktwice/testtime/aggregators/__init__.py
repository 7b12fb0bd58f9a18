"""One logit from a row's base pass and its paths: one file per aggregator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thinktwice.testtime.aggregators import confidence, consistency, mean, median
from thinktwice.testtime.aggregators.passes import Passes
from thinktwice.testtime.config import AggregatorKind

AGGREGATORS: dict[AggregatorKind, Callable[[Passes], np.ndarray]] = {
    "mean": mean.combine,
    "median": median.combine,
    "consistency": consistency.combine,
    "confidence": confidence.combine,
}

__all__ = ["AGGREGATORS", "Passes"]
