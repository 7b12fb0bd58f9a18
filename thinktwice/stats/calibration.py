"""Fits of calibrations: from raw logits to log-odds whose probabilities match the click rate. Labels are 0 or 1."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

RIDGE = 1e-4  # keeps the coefficients at 0 if ``missing`` is constant


def fit_platt(logit: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Slope and offset (a, b) of p = sigmoid(a z + b) that minimise the logloss of logits z [R] (Platt 1999); the slope is positive.

    The identity (1, 0) if labels are of one class or the fit does not lower the logloss.
    """
    z, y = logit.astype(np.float64), label.astype(np.float64)
    if y.min() == y.max():
        return 1.0, 0.0

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(theta[0])
        s = a * z + theta[1]
        error = expit(s) - y
        value = np.mean(np.logaddexp(0.0, s) - y * s)
        return float(value), np.array([np.mean(error * z) * a, np.mean(error)])

    optimum = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-3.0, 3.0), (-10.0, 10.0)])
    if not optimum.fun < loss(np.zeros(2))[0]:
        return 1.0, 0.0
    return float(np.exp(optimum.x[0])), float(optimum.x[1])


def fit_platt_by_support(
    logit: np.ndarray, missing: np.ndarray, label: np.ndarray
) -> tuple[float, float, float, float]:
    """(a, b, c, d) of the log-odds (a + d u) z + b + c u of logits z [R] with missing support u [R] in 0..1.

    The identity (1, 0, 0, 0) if labels are of one class or the fit does not lower the logloss.
    """
    z, y = logit.astype(np.float64), label.astype(np.float64)
    start = np.array([1.0, 0.0, 0.0, 0.0])
    if y.min() == y.max():
        return 1.0, 0.0, 0.0, 0.0
    design = np.stack([z, np.ones_like(z), missing, missing * z], axis=1)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        s, off = design @ theta, theta - start
        value = np.mean(np.logaddexp(0.0, s) - y * s) + RIDGE * off @ off
        return float(value), design.T @ (expit(s) - y) / len(y) + 2 * RIDGE * off

    optimum = minimize(loss, start, jac=True, method="L-BFGS-B")
    if not optimum.fun < loss(start)[0]:
        return 1.0, 0.0, 0.0, 0.0
    a, b, c, d = (float(v) for v in optimum.x)
    return a, b, c, d


def fit_temperature(logit: np.ndarray, label: np.ndarray) -> float:
    """The T > 0 of sigmoid(logit / T) with the least logloss; 1 where labels are of one class."""
    y = label.astype(np.float64)
    if y.min() == y.max():
        return 1.0

    def loss(log_t: float) -> float:
        s = logit * np.exp(-log_t)
        return float(np.mean(np.logaddexp(0.0, s) - y * s))

    optimum = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(optimum.x)) if optimum.fun < loss(0.0) else 1.0
