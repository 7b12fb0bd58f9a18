"""Always-valid inference: intervals and p-values that are valid at all looks simultaneously, without a horizon.

Asymptotic confidence sequences from the normal mixture (Robbins 1970; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021;
for sums of independent units). With intrinsic time v = v* I / I*, I the information 1 / se² now, I* the information at which the
sequence is tightest, and z = estimate / se, the mixture martingale is

    two-sided   E = (1 + v)^(-1/2) exp(z² v / (2 (1 + v)))
    one-sided   E = 2 (1 + v)^(-1/2) exp(z² v / (2 (1 + v))) Φ(z √(v / (1 + v)))        for effects above 0

and P(E >= 1 / α at any time) <= α when there is no effect. The interval contains all effects that are not rejected. I* must
not depend on later data; a fixed-horizon test is tighter at its horizon by a factor of about 1.8 in units (80 % power).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special


def tuned_time(alpha: float) -> float:
    """v* at which the interval of level 1 - ``alpha`` is tightest: the root of v = ln(1 + v) - 2 ln α."""
    _level(alpha)
    return float(-special.lambertw(-(alpha**2) / math.e, -1).real - 1)


def log_e_value(z: float, v: float) -> float:
    """Logarithm of the two-sided mixture martingale."""
    return -0.5 * math.log1p(v) + 0.5 * z * z * v / (1 + v)


def log_e_value_above(z: float, v: float) -> float:
    """Logarithm of the one-sided mixture martingale, for effects above 0."""
    return math.log(2) + log_e_value(z, v) + float(special.log_ndtr(z * math.sqrt(v / (1 + v))))


def always_valid_p(z: float, relative_information: float, alpha: float) -> float:
    """Two-sided p-value, valid at any time; the smallest so far is valid too.

    Args:
        z: estimate / se.
        relative_information: I / I*.
        alpha: level for which the sequence is tuned; the p-value is valid for other levels too.
    """
    return min(1.0, math.exp(-log_e_value(z, _time(relative_information, alpha))))


def always_valid_p_above(z: float, relative_information: float, alpha: float) -> float:
    """One-sided p-value of "the effect is above 0"."""
    return min(1.0, math.exp(-log_e_value_above(z, _time(relative_information, alpha))))


def two_sided_radius(relative_information: float, alpha: float) -> float:
    """Half width of the interval of level 1 - ``alpha`` in standard errors."""
    v = _time(relative_information, alpha)
    return math.sqrt((1 + v) / v * (math.log1p(v) - 2 * math.log(alpha)))


def one_sided_radius(relative_information: float, alpha: float) -> float:
    """Distance of a one-sided bound of level 1 - ``alpha`` from the estimate, in standard errors."""
    v = _time(relative_information, alpha)
    high = math.sqrt((1 + v) / v * (math.log1p(v) - 2 * math.log(alpha)))
    return float(optimize.brentq(lambda z: log_e_value_above(z, v) + math.log(alpha), 0.0, high, xtol=1e-12))


def two_sided_radii(relative_information: np.ndarray, alpha: float) -> np.ndarray:
    """:func:`two_sided_radius` of many looks."""
    v = tuned_time(alpha) * np.asarray(relative_information, np.float64)
    return np.sqrt((1 + v) / v * (np.log1p(v) - 2 * math.log(alpha)))


def _time(relative_information: float, alpha: float) -> float:
    if not (math.isfinite(relative_information) and relative_information > 0):
        raise ValueError(f"information is {relative_information}; it must be above 0 and finite")
    return tuned_time(alpha) * relative_information


def _level(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 and 1")
