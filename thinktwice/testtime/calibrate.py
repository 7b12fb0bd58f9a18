"""From raw logits to probabilities. Every fit here is made on validation rows."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from thinktwice.models.store import Calibration, Coefficient
from thinktwice.stats.calibration import fit_platt_by_support


class SupportCalibration(BaseModel):
    """Log-odds (a + d u) z + b + c u of a raw logit z, where u in 0..1 is the missing support of the row's values.

    Where the score of thinly supported rows is too sure of itself, or the click rate of newcomers differs, this says so
    without any further pass. It may also follow a drift that comes with novelty, so it is accepted on later rows only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Coefficient = 1.0
    b: Coefficient = 0.0
    c: Coefficient = 0.0
    d: Coefficient = 0.0


def apply(calibration: Calibration, z: np.ndarray) -> np.ndarray:
    """Calibrated log-odds of raw logits z, float64."""
    return calibration.a * z.astype(np.float64) + calibration.b


def apply_support(calibration: SupportCalibration, z: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Calibrated log-odds of raw logits z [B] of rows with missing support [B], float64."""
    return (calibration.a + calibration.d * missing) * z.astype(np.float64) + calibration.b + calibration.c * missing


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Probability of log-odds."""
    return 1.0 / (1.0 + np.exp(-logit))


def fit_support(z: np.ndarray, missing: np.ndarray, label: np.ndarray) -> SupportCalibration:
    """The calibration that minimises logloss (:func:`thinktwice.stats.calibration.fit_platt_by_support`)."""
    a, b, c, d = fit_platt_by_support(z, missing, label)
    return SupportCalibration(a=a, b=b, c=c, d=d)
