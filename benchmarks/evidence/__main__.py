"""The value of evidence over a tuned trunk: counters for every row, retrieved outcomes for some or all rows.

make bench-evidence             # MovieLens-1M by time, in-user and at random, the drifting simulator; five seeds (hours)
QUICK=1 make bench-evidence     # MovieLens-100K by time and a small simulator; two seeds (minutes)
ONLY=report make bench-evidence # the tables and bars of the units of work that are done, without doing more

Trained networks and scores are kept under .thinktwice/bench/evidence, by the hash of the code and settings that made them, and a
later run continues where one ended. LOGS="sim ml_user" SEEDS=1 restricts a run. Results: benchmarks/results/evidence.json
with the list ``bars``, and the page benchmarks/results/evidence.md with its plots.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

from benchmarks.evidence import bars, cost, measure, page, plan, second_look
from benchmarks.evidence.data import DELAYS, LOGS
from benchmarks.evidence.networks import networks_of
from benchmarks.testtime.__main__ import rounded
from thinktwice.files import write_json

RESULTS = Path(__file__).parents[1] / "results"
WORK = Path(".thinktwice/bench/evidence")
FULL, QUICK = ("ml_time", "sim", "ml_user", "ml_random"), ("ml_100k", "sim_small")
COST_DELAY = "ten minutes"


def collect(names: tuple[str, ...], seeds: int, work: Path, *, quick: bool) -> dict[str, Any]:
    """Tables and times of all units of work that are done."""
    torch.set_num_threads(1)
    logs: dict[str, Any] = {}
    for name in names:
        networks = networks_of(name, work)
        if networks.trunks.kept.found("trunk-scores-0") is None:
            continue
        measured = measure.Measured(networks, seeds)
        second = {delay: second_look.table(measured, delay) for delay in DELAYS}
        logs[name] = measure.table(measured) | {"second_look": {d: t for d, t in second.items() if t is not None}}
        print(f"{name}: tables", flush=True)
    rounds = 3 if quick else 25
    time = cost.measure(networks_of(names[0], work), COST_DELAY, rounds) if names[0] in logs else None
    return {"logs": logs, "time": time}


def main() -> None:
    """Do what is not done, print the bars, write the result and the page, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    names = tuple(os.environ.get("LOGS", "").split()) or (QUICK if quick else FULL)
    if unknown := sorted(set(names) - set(LOGS)):
        sys.exit(f"the log {unknown[0]!r} is unknown: choose of {' '.join(LOGS)}")
    seeds = int(os.environ.get("SEEDS", 2 if quick else 5))
    if os.environ.get("ONLY") != "report":
        plan.perform(plan.jobs_of(names, seeds), WORK)
    result = collect(names, seeds, WORK, quick=quick) | {
        "quick": quick,
        "seeds_asked": seeds,
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load": list(os.getloadavg())},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    result["bars"] = bars.of(result)
    whole = names == FULL
    target, name = (RESULTS, "evidence") if whole else (WORK, "evidence-quick" if quick else "evidence-part")
    write_json(target / f"{name}.json", rounded(result))
    page.write(target, name, result)
    for bar in result["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.4g}"
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {value} ({bar['bound']})")
    print(f"written: {target / name}.json and .md")
    if not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
