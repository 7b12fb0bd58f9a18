"""Logits to probabilities: apply a calibration, and fit one."""

from __future__ import annotations

import numpy as np

from thinktwice.models.store import Calibration

MIN_ROWS = 50  # fewer rows, or rows of one class, carry no calibration


def apply(calibration: Calibration, z: np.ndarray) -> np.ndarray:
    """Calibrated log-odds of raw logits z, float64."""
    return calibration.a * z.astype(np.float64) + calibration.b


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Probability of log-odds."""
    return 1.0 / (1.0 + np.exp(-logit))


def row_loss(label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    """Logloss in nats of every row, from log-odds."""
    return np.logaddexp(0.0, logit) - label * logit


def fit_calibration(z: np.ndarray, label: np.ndarray) -> Calibration | None:
    """The scale and shift that minimise logloss (Newton with halved steps), or None with too few rows or one class.

    The scale stays positive: a calibration never turns the order of rows around.
    """
    if len(z) < MIN_ROWS or label.min() == label.max():
        return None
    x = np.stack([z.astype(np.float64), np.ones(len(z))])
    w = np.array([1.0, 0.0])
    loss = float(row_loss(label, w @ x).mean())
    for _ in range(50):
        p = sigmoid(w @ x)
        gradient = x @ (p - label) / len(z)
        hessian = (x * (p * (1 - p))) @ x.T / len(z) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while scale > 1e-6:
            trial = w - scale * step
            new = float(row_loss(label, trial @ x).mean()) if trial[0] > 0.01 else np.inf
            if new <= loss:
                break
            scale /= 2
        else:
            break
        done = loss - new < 1e-12
        w, loss = trial, new
        if done:
            break
    return Calibration(a=float(w[0]), b=float(w[1]))
