"""From raw logits to probabilities."""

from __future__ import annotations

import numpy as np

from thinktwice.models.store import Calibration


def apply(calibration: Calibration, z: np.ndarray) -> np.ndarray:
    """Calibrated log-odds of raw logits z, float64."""
    return calibration.a * z.astype(np.float64) + calibration.b


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Probability of log-odds."""
    return 1.0 / (1.0 + np.exp(-logit))
