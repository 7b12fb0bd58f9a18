"""From raw logits to probabilities. Every fit here is made on validation rows."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from thinktwice.models.store import Calibration, Coefficient

RIDGE = 1e-4  # keeps the coefficients of a constant ``missing`` at 0


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
    """The calibration that minimises logloss; the identity where labels are of one class or nothing is gained."""
    z, y = z.astype(np.float64), label.astype(np.float64)
    if y.min() == y.max():
        return SupportCalibration()
    design = np.stack([z, np.ones_like(z), missing, missing * z], axis=1)
    start = np.array([1.0, 0.0, 0.0, 0.0])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        s, off = design @ theta, theta - start
        value = np.mean(np.logaddexp(0.0, s) - y * s) + RIDGE * off @ off
        return float(value), design.T @ (expit(s) - y) / len(y) + 2 * RIDGE * off

    found = minimize(loss, start, jac=True, method="L-BFGS-B")
    if not found.fun < loss(start)[0]:
        return SupportCalibration()
    a, b, c, d = (float(v) for v in found.x)
    return SupportCalibration(a=a, b=b, c=c, d=d)


def fit_temperature(logit: np.ndarray, label: np.ndarray) -> float:
    """The T > 0 of sigmoid(logit / T) with the least logloss; 1 where labels are of one class."""
    y = label.astype(np.float64)
    if y.min() == y.max():
        return 1.0

    def loss(log_t: float) -> float:
        s = logit * np.exp(-log_t)
        return float(np.mean(np.logaddexp(0.0, s) - y * s))

    found = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0
