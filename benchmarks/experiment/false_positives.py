"""False-positive rates of each method in A/A experiments with daily looks."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.experiment.users import (
    CLICKS,
    CTR,
    DAYS,
    PAST,
    World,
    by_day,
    draw,
    growing_treatment_z,
    moments,
    rows_z,
)
from thinktwice.stats.difference import difference, two_sided_quantile
from thinktwice.stats.group_sequential import CLOSEST, boundaries, spent_by
from thinktwice.stats.sequences import one_sided_radius, two_sided_radius

ALPHA = 0.05
USERS = 1000  # per arm
FIRST_UNITS = 200  # per arm, before the first look
FAMILIES = {"ctr": (CTR, False), "ctr, CUPED": (CTR, True), "clicks per user": (CLICKS, False)}


def measure(runs: int, workers: int = 2) -> dict[str, Any]:
    """False positives by scenario, metric and method."""
    out: dict[str, Any] = {"runs": runs, "users_per_arm": USERS, "looks": DAYS, "alpha": ALPHA, "scenarios": {}}
    blocks = max(1, runs // 100)
    for scenario, ramp in (("constant", False), ("ramp under a trend", True)):
        with ProcessPoolExecutor(workers) as pool:
            positives = list(pool.map(_block, [(ramp, seed, runs // blocks) for seed in range(blocks)]))
        total = sum((Counter(f) for f in positives), start=Counter())
        done = blocks * (runs // blocks)
        out["scenarios"][scenario] = {name: total[name] / done for name in sorted(_names())}
    rng = np.random.default_rng(99)
    growing = [abs(growing_treatment_z(rng, USERS)) >= two_sided_quantile(ALPHA) for _ in range(max(20, runs // 50))]
    out["growing_treatment"] = float(np.mean(growing))
    return out


def _names() -> list[str]:
    methods = ("fixed horizon", "group sequential", "sequence", "one-sided sequence")
    return [f"{family}: {method}" for family in FAMILIES for method in methods] + ["rows taken for independent"]


def _block(task: tuple[bool, int, int]) -> dict[str, int]:
    ramp, seed, runs = task
    rng = np.random.default_rng([seed, int(ramp)])
    positives: Counter[str] = Counter()
    for _ in range(runs):
        world = draw(rng, USERS, ramp=ramp)
        positives.update(name for name, positive in _one(world).items() if positive)
    return dict(positives)


def _one(world: World) -> dict[str, bool]:
    sums = by_day(world)
    positive: dict[str, bool] = {}
    days = [d for d in range(DAYS) if min((sums[d, world.arm == a, 1] > 0).sum() for a in (0, 1)) >= FIRST_UNITS]
    arms = [moments(sums[d], world.arm) for d in days]
    for family, (metric, cuped) in FAMILIES.items():
        looks = [difference(*pair, metric, [PAST] if cuped else []) for pair in arms]
        z, information = np.array([x.z for x in looks]), np.array([x.information for x in looks])
        # As in the analysis: the sequence is tightest at the horizon extrapolated from the first look.
        tuned = information[0] * DAYS / (days[0] + 1)
        positive[f"{family}: fixed horizon"] = bool(abs(z[-1]) >= two_sided_quantile(ALPHA))
        positive[f"{family}: sequence"] = any(
            abs(v) >= two_sided_radius(i / tuned, ALPHA) for v, i in zip(z, information, strict=True)
        )
        positive[f"{family}: one-sided sequence"] = any(
            v >= 1.6 and v >= one_sided_radius(i / tuned, ALPHA) for v, i in zip(z, information, strict=True)
        )
        positive[f"{family}: group sequential"] = bool(np.abs(z).max() >= 1.9) and crosses(z, information, days)
    positive["rows taken for independent"] = any(abs(rows_z(*pair)) >= two_sided_quantile(ALPHA) for pair in arms)
    return positive


def crosses(z: np.ndarray, information: np.ndarray, days: list[int]) -> bool:
    """Whether any look crosses; a look whose information has not grown is skipped, except the last one."""
    looks, grown = [0], [float(information[0])]
    for k in range(1, len(z)):
        least = grown[-1] / (1 - 2 * CLOSEST)
        if information[k] >= least or k == len(z) - 1:
            looks.append(k)
            grown.append(max(float(information[k]), least))
    bounds = boundaries(tuple(grown), spent_by([(days[k] + 1) / DAYS for k in looks], ALPHA, True))
    return bool((np.abs(z[looks]) >= np.array(bounds)).any())
