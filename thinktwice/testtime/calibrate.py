"""Calibration of raw logits to probabilities. All fits use validation rows."""

from __future__ import annotations

import numpy as np

from thinktwice.calibration import Calibration, SupportCalibration
from thinktwice.stats.calibration import fit_platt_by_support


def apply(calibration: Calibration, z: np.ndarray) -> np.ndarray:
    """Calibrated log-odds of raw logits z, float64."""
    return calibration.a * z.astype(np.float64, copy=False) + calibration.b


def apply_support(calibration: SupportCalibration, z: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Calibrated log-odds of raw logits z [B] of rows with missing support [B], float64."""
    return (
        (calibration.a + calibration.d * missing) * z.astype(np.float64, copy=False)
        + calibration.b
        + calibration.c * missing
    )


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Probability of log-odds."""
    return 1.0 / (1.0 + np.exp(-logit))


def fit_support(z: np.ndarray, missing: np.ndarray, label: np.ndarray) -> SupportCalibration:
    """The calibration that minimises logloss (:func:`thinktwice.stats.calibration.fit_platt_by_support`)."""
    a, b, c, d = fit_platt_by_support(z, missing, label)
    return SupportCalibration(a=a, b=b, c=c, d=d)
