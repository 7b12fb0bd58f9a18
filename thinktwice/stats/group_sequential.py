"""Group sequential tests: several looks at one experiment, one error level.

At looks k = 1..K with information I_k (1 / se² of the estimate) the statistic Z_k = estimate / se has, for efficient estimates,
independent increments of the score: S_k = Z_k √I_k, S_k - S_{k-1} ~ N(θ (I_k - I_{k-1}), I_k - I_{k-1}) (Scharfstein, Tsiatis and
Robins 1997). The boundary c_k spends the planned share of α between two looks (Lan and DeMets 1983):

    P(|Z_1| < c_1, ..., |Z_{k-1}| < c_{k-1}, |Z_k| >= c_k) = α(t_k) - α(t_{k-1})

It is computed by recursive numerical integration (Armitage, McPherson and Rowe 1969; Jennison and Turnbull 2000, ch. 19),
with Gauss-Legendre panels as wide as an increment's standard deviation. Looks need be neither evenly spaced nor known
beforehand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from thinktwice.stats.difference import two_sided_quantile

REACH = 8.5  # standard deviations: the probability beyond is below 1e-16
NODES = 8  # of a panel
CLOSEST = 2e-4  # smallest increase of information between two looks, as a share of the later one
UNREACHABLE = 40.0  # a boundary that no path reaches


@dataclass(frozen=True)
class Crossing:
    """Probabilities of crossing first at each look [K], above the upper boundary and below the lower one."""

    upper: np.ndarray
    lower: np.ndarray

    @property
    def total(self) -> float:
        return float(self.upper.sum() + self.lower.sum())


def obrien_fleming(fraction: float, alpha: float) -> float:
    """Two-sided α spent by the fraction of the horizon: 4 (1 - Φ(z_{α/4} / √t)) (Lan and DeMets 1983, two sides of α/2)."""
    if fraction <= 0:
        return 0.0
    return min(alpha, 4 * float(special.ndtr(special.ndtri(alpha / 4) / math.sqrt(min(fraction, 1.0)))))


def pocock(fraction: float, alpha: float) -> float:
    """Two-sided α spent by the fraction of the horizon: α ln(1 + (e - 1) t)."""
    return alpha * math.log(1 + (math.e - 1) * min(max(fraction, 0.0), 1.0))


def spent_by(
    fractions: Sequence[float], alpha: float, final: bool, spending: Callable[[float, float], float] = obrien_fleming
) -> tuple[float, ...]:
    """Cumulative α at each look; a ``final`` last look spends the remaining α, whatever its fraction.

    Raises:
        ValueError: fractions do not increase, or α is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be between 0 and 1")
    if any(b <= a for a, b in itertools.pairwise(fractions)) or (fractions and fractions[0] <= 0):
        raise ValueError(f"the fractions of the horizon must increase from above 0, not {list(fractions)}")
    spent = [spending(f, alpha) for f in fractions]
    if final and spent:
        spent[-1] = alpha
    return tuple(spent)


@lru_cache(maxsize=4096)
def boundaries(information: tuple[float, ...], spent: tuple[float, ...]) -> tuple[float, ...]:
    """Two-sided critical values of |Z| at each look; ``inf`` at a look with no α to spend.

    Args:
        information: of each look, increasing; only ratios matter.
        spent: cumulative two-sided α at each look (:func:`spent_by`).

    Raises:
        ValueError: information does not increase by at least 0.02 % from look to look, or lengths differ.
    """
    _check(information, len(spent))
    path, bounds, before = _Path(), list[float](), 0.0
    for k, (info, total) in enumerate(zip(information, spent, strict=True)):
        target, before = total - before, max(before, total)
        path.step(info)
        critical = math.inf if target <= 1e-15 else path.critical(target)
        bounds.append(critical)
        if k + 1 < len(spent):
            path.keep(critical, information[k + 1])
    return tuple(bounds)


def crossing(information: Sequence[float], bounds: Sequence[float], drift: float = 0.0) -> Crossing:
    """Probabilities of first crossing ±bounds at each look when E[Z_k] = ``drift`` √I_k."""
    _check(information, len(bounds))
    path = _Path(drift)
    upper, lower = [], []
    for k, (info, bound) in enumerate(zip(information, bounds, strict=True)):
        path.step(info)
        up, down = path.beyond(bound)
        upper.append(up)
        lower.append(down)
        if k + 1 < len(bounds):
            path.keep(bound, information[k + 1])
    return Crossing(np.array(upper), np.array(lower))


def drift_for_power(information: Sequence[float], bounds: Sequence[float], power: float) -> float:
    """The drift θ with which the upper boundary is crossed by the last look with probability ``power``."""
    if not 0 < power < 1:
        raise ValueError(f"power is {power}; it must be between 0 and 1")

    def gap(drift: float) -> float:
        return float(crossing(information, bounds, drift).upper.sum()) - power

    high = 1 / math.sqrt(information[-1])
    while gap(high) < 0:
        high *= 2
    return float(optimize.brentq(gap, -high, high, xtol=1e-10 * high))


def repeated_p(
    information: Sequence[float],
    fractions: Sequence[float],
    z: Sequence[float],
    final: bool,
    spending: Callable[[float, float], float] = obrien_fleming,
) -> float:
    """The smallest α at which any look so far has crossed its boundary: valid at every look, under any stopping rule.

    Returns 1 if no look crosses even at the largest α considered (0.5).
    """

    def crossed(alpha: float) -> bool:
        bounds = boundaries(tuple(information), spent_by(fractions, alpha, final, spending))
        return any(abs(v) >= b for v, b in zip(z, bounds, strict=True))

    low, high = math.log(1e-12), math.log(0.5)
    if not crossed(math.exp(high)):
        return 1.0
    if crossed(math.exp(low)):
        return math.exp(low)
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if crossed(math.exp(middle)) else (middle, high)
    return math.exp(high)


@dataclass(frozen=True)
class AtStop:
    """The adjusted result of a group sequential test that has stopped.

    Attributes:
        p: two-sided p-value by stage-wise ordering.
        value: median-unbiased estimate.
        low, high: interval of level 1 - α by the same ordering.
    """

    p: float
    value: float
    low: float
    high: float


def at_stop(information: Sequence[float], bounds: Sequence[float], z: float, alpha: float) -> AtStop:
    """Adjusted p-value, estimate and interval at the last of these looks (stage-wise ordering; Tsiatis, Rosner and Mehta 1984).

    A result is more extreme the earlier it crossed, then the larger |Z|. The estimate that ignores the stopping rule is
    biased away from 0; this one is not.
    """
    bounds = [*bounds[:-1], abs(z)]
    sign = 1.0 if z >= 0 else -1.0

    def above(drift: float) -> float:
        """P(a result more extreme in the direction of z)."""
        return float(crossing(information, bounds, drift).upper.sum())

    p = min(1.0, 2 * min(above(0.0), 1 - above(0.0)))
    centre, scale = abs(z) / math.sqrt(information[-1]), 1 / math.sqrt(information[0])

    def drift_at(level: float) -> float:
        low, high = centre - scale, centre + scale
        while above(low) > level:
            low -= scale
        while above(high) < level:
            high += scale
        return float(optimize.brentq(lambda d: above(d) - level, low, high, xtol=1e-9 * scale))

    low, middle, high = (drift_at(level) for level in (alpha / 2, 0.5, 1 - alpha / 2))
    return AtStop(p, sign * middle, low if sign > 0 else -high, high if sign > 0 else -low)


def fixed_boundaries(looks: int, alpha: float) -> tuple[float, ...]:
    """Boundaries of a fixed-horizon test: no test before the last look."""
    return (*((math.inf,) * (looks - 1)), two_sided_quantile(alpha))


class _Path:
    """The density of the score on paths that have not crossed yet: nodes, and mass (weight times density) at each."""

    def __init__(self, drift: float = 0.0) -> None:
        self._drift = drift
        self._at = 0.0
        self._score, self._mass = np.zeros(1), np.ones(1)
        self._sd = self._info = 0.0
        self._centre = self._score

    def step(self, info: float) -> None:
        """Advance to the next look."""
        self._sd, self._info = math.sqrt(info - self._at), info
        self._centre = self._score + self._drift * (info - self._at)

    def beyond(self, bound: float) -> tuple[float, float]:
        """P(upper crossing), P(lower crossing) at this look."""
        edge = min(bound, UNREACHABLE) * math.sqrt(self._info)
        up = self._mass @ special.ndtr((self._centre - edge) / self._sd)
        down = self._mass @ special.ndtr((-self._centre - edge) / self._sd)
        return float(up), float(down)

    def critical(self, target: float) -> float:
        """The bound whose two-sided crossing probability is the target; 0 if all paths together have less."""
        if sum(self.beyond(0.0)) <= target:
            return 0.0
        return float(optimize.brentq(lambda c: sum(self.beyond(c)) - target, 0.0, UNREACHABLE, xtol=1e-12))

    def keep(self, bound: float, next_info: float) -> None:
        """Keep the paths within ±bound."""
        reach = REACH * math.sqrt(self._info)
        middle = self._drift * self._info
        edge = min(bound, UNREACHABLE) * math.sqrt(self._info)
        low, high = max(-edge, middle - reach), min(edge, middle + reach)
        if high <= low:  # all paths have crossed
            self._score, self._mass, self._at = np.zeros(1), np.zeros(1), self._info
            return
        width = min(self._sd, math.sqrt(next_info - self._info))
        panels = max(1, math.ceil((high - low) / (1.5 * width)))
        node, weight = _legendre()
        half = (high - low) / panels / 2
        centres = low + half * (2 * np.arange(panels) + 1)
        score = (centres[:, None] + half * node[None, :]).ravel()
        density = np.exp(-0.5 * ((score[:, None] - self._centre[None, :]) / self._sd) ** 2) @ self._mass
        self._mass = density * np.tile(weight * half, panels) / (self._sd * math.sqrt(2 * math.pi))
        self._score, self._at = score, self._info


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(NODES)


def _check(information: Sequence[float], looks: int) -> None:
    if len(information) != looks or not looks:
        raise ValueError(f"{len(information)} informations for {looks} looks")
    if not all(math.isfinite(i) and i > 0 for i in information):
        raise ValueError(f"information must be above 0 and finite, not {list(information)}")
    for a, b in itertools.pairwise(information):
        if b - a < CLOSEST * b:
            raise ValueError(
                f"information must increase from look to look by at least {CLOSEST:.2%}, not from {a} to {b}"
            )
