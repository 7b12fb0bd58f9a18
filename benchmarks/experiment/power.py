"""Power of each method, coverage of each interval, and variance reduction by the pre-period."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.experiment.users import CTR, NAMES, PAST, by_day, compared, draw, totals
from thinktwice.stats.difference import Metric, difference, explained_share, relative_change, two_sided_quantile
from thinktwice.stats.group_sequential import at_stop, boundaries, spent_by
from thinktwice.stats.moments import Moments
from thinktwice.stats.plan import Method, drift, horizon_factor, power_of
from thinktwice.stats.quantiles import GROUPS, Histogram, quantile
from thinktwice.stats.sequences import two_sided_radii

LOOKS, ALPHA = 14, 0.05
FRACTIONS = np.arange(1, LOOKS + 1) / LOOKS
METHODS: tuple[Method, ...] = ("fixed", "group_sequential", "sequence")


def power(runs: int) -> dict[str, Any]:
    """Power at the horizon by the fixed test's power, computed and simulated, and the longer horizon that each method needs."""
    rng = np.random.default_rng(1)
    bounds = boundaries(tuple(FRACTIONS), spent_by(list(FRACTIONS), ALPHA, True))
    rows = []
    for target_power in (0.5, 0.8, 0.9, 0.95):
        effect = drift("fixed", 1, ALPHA, target_power)
        z = _paths(rng, runs, effect)
        simulated = {
            "fixed": z[:, -1] >= two_sided_quantile(ALPHA),
            "group_sequential": _first_crossing_up(z, np.array(bounds)),
            "sequence": _first_crossing_up(z, two_sided_radii(FRACTIONS, ALPHA)),
        }
        for method in METHODS:
            computed = power_of(method, LOOKS, ALPHA, effect)
            rows.append(
                {"fixed_power": target_power, "method": method, "power": computed, "simulated": float(simulated[method].mean()), "ratio": computed / target_power}
            )  # fmt: skip
    factors = {m: horizon_factor(m, LOOKS, ALPHA, 0.8) for m in METHODS}
    return {"looks": LOOKS, "rows": rows, "horizon_factor_at_80_percent": factors}


def coverage(runs: int) -> dict[str, float]:
    """Share of intervals that contain the true value; nominal 95 %."""
    rng = np.random.default_rng(2)
    bounds = np.array(boundaries(tuple(FRACTIONS), spent_by(list(FRACTIONS), ALPHA, True)))
    effect = drift("fixed", 1, ALPHA, 0.8)
    z = _paths(rng, 4 * runs, effect)
    truth = effect * np.sqrt(FRACTIONS)
    repeated = (np.abs(z - truth) <= bounds).all(axis=1)
    radius = two_sided_radii(FRACTIONS, ALPHA)
    out = {
        "group sequential, repeated, all looks at once": float(repeated.mean()),
        "sequence, all looks at once (at least nominal)": float((np.abs(z - truth) <= radius).all(axis=1).mean()),
    }
    stops = max(200, runs // 10)
    out["group sequential, adjusted at the stop"] = float(
        np.mean([_stop_covers(path, bounds, effect) for path in z[:stops]])
    )
    out |= _of_users(runs)
    out["latency p90, rounded to ms, units repeated"] = _of_quantiles(max(200, runs))
    return out


def cuped(runs: int) -> dict[str, float]:
    """Variance of the estimate over repeats with and without the pre-period, against 1 - ρ² of the population."""
    rng = np.random.default_rng(3)
    plain, reduced = [], []
    for _ in range(runs):
        arms = [Moments.of(NAMES, totals(rng, 2000)) for _ in range(2)]
        plain.append(difference(*arms, CTR).value)
        reduced.append(difference(*arms, CTR, [PAST]).value)
    shards = [Moments.of(NAMES, totals(rng, 1_000_000)) for _ in range(3 if runs < 1000 else 20)]
    population = sum(shards[1:], start=shards[0])
    return {
        "ctr: measured variance ratio": float(np.var(reduced) / np.var(plain)),
        "ctr: 1 - rho^2": 1 - explained_share(population, CTR, [PAST]),
        **_gaussian_cuped(rng, max(1000, runs)),
    }


def _gaussian_cuped(rng: np.random.Generator, runs: int) -> dict[str, float]:
    """A mean with a correlation of 0.7 by construction: the ratio must be 0.51."""
    rho, units = 0.7, 200
    plain, reduced = [], []
    for _ in range(runs):
        x = rng.normal(size=2 * units)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=2 * units)
        parts = [
            Moments.of(("y", "x"), np.stack([y, x], axis=1)[half]) for half in (slice(0, units), slice(units, None))
        ]
        plain.append(difference(*parts, Metric("y")).value)
        reduced.append(difference(*parts, Metric("y"), [Metric("x")]).value)
    return {"mean: measured variance ratio": float(np.var(reduced) / np.var(plain)), "mean: 1 - rho^2": 1 - rho**2}


def _paths(rng: np.random.Generator, runs: int, effect: float) -> np.ndarray:
    """z at every look [runs, K] when its mean at the horizon is ``effect``."""
    steps = rng.normal(effect / LOOKS, np.sqrt(1 / LOOKS), (runs, LOOKS))
    return steps.cumsum(axis=1) / np.sqrt(FRACTIONS)


def _first_crossing_up(z: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Whether the first crossing is upwards [runs]."""
    crossed = np.abs(z) >= bounds
    first = crossed.argmax(axis=1)
    return crossed.any(axis=1) & (z[np.arange(len(z)), first] > 0)


def _stop_covers(path: np.ndarray, bounds: np.ndarray, effect: float) -> bool:
    crossed = np.abs(path) >= bounds
    k = int(crossed.argmax()) if crossed.any() else LOOKS - 1
    interval = at_stop(tuple(FRACTIONS[: k + 1]), tuple(bounds[: k + 1]), float(path[k]), ALPHA)
    return interval.low <= effect <= interval.high


def _of_users(runs: int) -> dict[str, float]:
    """Absolute and relative intervals of a lift of 10 % at the horizon, from users."""
    rng = np.random.default_rng(4)
    lift = 0.1
    truth = 0.05 * lift  # the mean rate is that of a beta(2, 38); activity is independent of it
    absolute = adjusted = relative = 0
    for _ in range(runs):
        world = draw(rng, 1000, lift=lift)
        sums = by_day(world)[-1]
        z = two_sided_quantile(ALPHA)
        plain = compared(sums, world.arm, CTR, False)
        absolute += abs(plain.value - truth) <= z * plain.se
        cuped_ = compared(sums, world.arm, CTR, True)
        adjusted += abs(cuped_.value - truth) <= z * cuped_.se
        _, low, high, _ = relative_change(plain, z)
        relative += low <= lift <= high
    return {
        "ctr, absolute": absolute / runs,
        "ctr, absolute, CUPED": adjusted / runs,
        "ctr, relative (Fieller)": relative / runs,
    }


def _of_quantiles(runs: int) -> float:
    truth = quantile(_latency(np.random.default_rng(5), 400_000), 0.9).value
    rng = np.random.default_rng(6)
    intervals = [quantile(_latency(rng, 2000), 0.9, ALPHA) for _ in range(runs)]
    return float(np.mean([q.low <= truth <= q.high for q in intervals]))


def _latency(rng: np.random.Generator, users: int) -> Histogram:
    unit = np.repeat(np.arange(users), rng.geometric(0.2, users))
    level = rng.normal(0, 0.4, users)[unit]
    value = np.round(np.exp(3 + level + rng.normal(0, 0.4, len(unit))))
    return Histogram.of_rows(value, rng.integers(0, GROUPS, users)[unit])
