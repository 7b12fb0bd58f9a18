"""Logits of a whole part, its AUC for the record, and the calibration fitted on them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from thinktwice.models.store import Calibration
from thinktwice.stats.metrics import auc
from thinktwice.threads import reproducible
from thinktwice.train.device import on_device
from thinktwice.train.joint import Trainee
from thinktwice.train.loader import BlockLoader

EVALUATION_BATCH = 8192


@reproducible()
def logits_of(model: Trainee, rows: BlockLoader) -> np.ndarray:
    """Logits [R] float32 of all rows (means of a joint), in evaluation mode, computed where the model is."""
    training, device = model.training, model.table.device
    model.eval()
    with torch.inference_mode():
        parts = [model(on_device(batch, device)).cpu().numpy() for batch in rows.in_order(EVALUATION_BATCH)]
    model.train(training)
    return np.concatenate(parts)


def known_auc(label: np.ndarray, logit: np.ndarray) -> float | None:
    """AUC; None where one class alone leaves it undefined."""
    value = auc(label, logit)
    return None if np.isnan(value) else value


def fit_calibration(logit: np.ndarray, label: np.ndarray) -> Calibration:
    """Slope and offset of p = sigmoid(a z + b) that minimise logloss (Platt); the slope stays positive.

    Labels of one class, or a fit that does not lower the logloss, give the identity.
    """
    z, y = logit.astype(np.float64), label.astype(np.float64)
    if y.min() == y.max():
        return Calibration()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(theta[0])
        s = a * z + theta[1]
        error = expit(s) - y
        value = np.mean(np.logaddexp(0.0, s) - y * s)
        return float(value), np.array([np.mean(error * z) * a, np.mean(error)])

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-3.0, 3.0), (-10.0, 10.0)])
    if not found.fun < loss(np.zeros(2))[0]:
        return Calibration()
    return Calibration(a=float(np.exp(found.x[0])), b=float(found.x[1]))
