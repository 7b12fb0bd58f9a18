"""A/A experiments with a look a day: how often each method finds what is not there."""

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
USERS = 1000  # an arm
FIRST_UNITS = 200  # of each arm, seen before the first look
FAMILIES = {"ctr": (CTR, False), "ctr, CUPED": (CTR, True), "clicks per user": (CLICKS, False)}


def measure(runs: int, workers: int = 2) -> dict[str, Any]:
    """False positives by scenario, metric and method."""
    out: dict[str, Any] = {"runs": runs, "users_per_arm": USERS, "looks": DAYS, "alpha": ALPHA, "scenarios": {}}
    blocks = max(1, runs // 100)
    for scenario, ramp in (("constant", False), ("ramp under a trend", True)):
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(_block, [(ramp, seed, runs // blocks) for seed in range(blocks)]))
        total = sum((Counter(f) for f in found), start=Counter())
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
    found: Counter[str] = Counter()
    for _ in range(runs):
        world = draw(rng, USERS, ramp=ramp)
        found.update(name for name, positive in _one(world).items() if positive)
    return dict(found)


def _one(world: World) -> dict[str, bool]:
    sums = by_day(world)
    found: dict[str, bool] = {}
    days = [d for d in range(DAYS) if min((sums[d, world.arm == a, 1] > 0).sum() for a in (0, 1)) >= FIRST_UNITS]
    arms = [moments(sums[d], world.arm) for d in days]
    for family, (metric, cuped) in FAMILIES.items():
        looks = [difference(*pair, metric, [PAST] if cuped else []) for pair in arms]
        z, information = np.array([x.z for x in looks]), np.array([x.information for x in looks])
        # As the analysis does: a sequence is tightest at the horizon by the first look's pace.
        tuned = information[0] * DAYS / (days[0] + 1)
        found[f"{family}: fixed horizon"] = bool(abs(z[-1]) >= two_sided_quantile(ALPHA))
        found[f"{family}: sequence"] = any(
            abs(v) >= two_sided_radius(i / tuned, ALPHA) for v, i in zip(z, information, strict=True)
        )
        found[f"{family}: one-sided sequence"] = any(
            v >= 1.6 and v >= one_sided_radius(i / tuned, ALPHA) for v, i in zip(z, information, strict=True)
        )
        found[f"{family}: group sequential"] = bool(np.abs(z).max() >= 1.9) and crosses(z, information, days)
    found["rows taken for independent"] = any(abs(rows_z(*pair)) >= two_sided_quantile(ALPHA) for pair in arms)
    return found


def crosses(z: np.ndarray, information: np.ndarray, days: list[int]) -> bool:
    """Whether any look crosses; a look whose information has not grown is left out, but for the last one."""
    kept, grown = [0], [float(information[0])]
    for k in range(1, len(z)):
        least = grown[-1] / (1 - 2 * CLOSEST)
        if information[k] >= least or k == len(z) - 1:
            kept.append(k)
            grown.append(max(float(information[k]), least))
    bounds = boundaries(tuple(grown), spent_by([(days[k] + 1) / DAYS for k in kept], ALPHA, True))
    return bool((np.abs(z[kept]) >= np.array(bounds)).any())
