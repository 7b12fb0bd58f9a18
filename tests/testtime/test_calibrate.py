"""Calibrations against known optima and another optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from thinktwice.calibration import Calibration, SupportCalibration
from thinktwice.stats.calibration import RIDGE, fit_temperature
from thinktwice.testtime.calibrate import apply, apply_support, fit_support, sigmoid

ROWS = 40_000


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw logits, missing support, and labels drawn from a known calibration of them."""
    rng = np.random.default_rng(0)
    z, missing = rng.normal(-1, 1.5, ROWS), rng.beta(1, 2, ROWS)
    logit = apply_support(SupportCalibration(a=0.8, b=0.3, c=-0.9, d=-0.5), z, missing)
    return z, missing, (rng.random(ROWS) < expit(logit)).astype(np.float32)


def test_the_law_by_hand() -> None:
    z, missing = np.array([2.0, -1.0]), np.array([0.0, 0.5])
    found = apply_support(SupportCalibration(a=2.0, b=1.0, c=-4.0, d=1.0), z, missing)
    np.testing.assert_allclose(found, [5.0, -3.5])
    np.testing.assert_array_equal(apply_support(SupportCalibration(), z, missing), z)
    np.testing.assert_array_equal(apply(Calibration(a=2.0, b=1.0), z.astype(np.float32)), [5.0, -1.0])
    np.testing.assert_allclose(sigmoid(z), expit(z))


def test_support_calibration_finds_what_made_the_labels(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    found = fit_support(*rows)
    assert (found.a, found.b) == (pytest.approx(0.8, abs=0.05), pytest.approx(0.3, abs=0.05))
    assert (found.c, found.d) == (pytest.approx(-0.9, abs=0.12), pytest.approx(-0.5, abs=0.1))


def test_support_calibration_is_the_optimum_of_its_loss(rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    z, missing, label = (v[:3000].astype(np.float64) for v in rows)
    found = fit_support(z, missing, label)

    def loss(theta: np.ndarray) -> float:
        p = expit((theta[0] + theta[3] * missing) * z + theta[1] + theta[2] * missing)
        off = theta - [1, 0, 0, 0]
        return float(-np.mean(label * np.log(p) + (1 - label) * np.log(1 - p)) + RIDGE * off @ off)

    other = minimize(loss, np.zeros(4), method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-8, "fatol": 1e-14})
    assert loss(np.array([found.a, found.b, found.c, found.d])) <= other.fun + 1e-8
    np.testing.assert_allclose([found.a, found.b, found.c, found.d], other.x, atol=2e-3)


def test_support_that_is_the_same_in_every_row_adds_nothing_of_its_own() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(0, 1, ROWS)
    label = (rng.random(ROWS) < expit(1.4 * z - 0.5)).astype(np.float32)
    found = fit_support(z, np.zeros(ROWS), label)
    assert (found.c, found.d) == (0.0, 0.0)
    assert found.a == pytest.approx(1.4, abs=0.05) and found.b == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_finds_what_scaled_the_logits(temperature: float) -> None:
    rng = np.random.default_rng(2)
    logit = rng.normal(0, 2, ROWS)
    label = (rng.random(ROWS) < expit(logit)).astype(np.float32)
    found = fit_temperature(logit * temperature, label)
    assert found == pytest.approx(temperature, rel=0.04)
    scale = minimize(
        lambda s: float(np.mean(np.logaddexp(0, s[0] * logit * temperature) - label * s[0] * logit * temperature)),
        [1.0],
    )
    assert 1 / found == pytest.approx(scale.x[0], rel=1e-3)


def test_labels_of_one_class_change_nothing() -> None:
    z = np.linspace(-1, 1, 50)
    for label in (np.zeros(50), np.ones(50)):
        assert fit_support(z, z * z, label) == SupportCalibration()
        assert fit_temperature(z, label) == 1.0
