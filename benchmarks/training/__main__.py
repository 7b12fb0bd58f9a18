"""How good and how fast training is: quality against peers, the recipe ``default`` against an earlier commit, what pre-training adds.

make bench-training              # five seeds, three peers in environments that it makes (hours)
QUICK=1 make bench-training      # a small log, no peer, one seed (under two minutes)
ONLY=report make bench-training  # the tables and bars of the units that are done, without doing more

Results of units are kept under .thinktwice/bench/training by the hash of the code and settings that made them; a later run continues
where one ended. SEEDS=2 restricts a run, MINUTES=30 ends it before the first unit that begins later. Results:
benchmarks/results/training.json with the list ``bars``, and the page benchmarks/results/training.md with its plots.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.testtime.__main__ import rounded
from benchmarks.training import bars, page, plan, tables
from benchmarks.training.units import Units
from thinktwice.files import write_json

RESULTS = Path(__file__).parents[1] / "results"
WORK = Path(".thinktwice/bench/training")


def perform(work: Path, seeds: int, minutes: float | None, *, quick: bool) -> None:
    """Do the units that are not done, one after the other on one thread."""
    torch.set_num_threads(1)
    began, kept = time.monotonic(), Units(work)
    for unit in plan.quick_units(work) if quick else plan.units(kept, work, seeds):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            print(f"stopped after {minutes:g} minutes: the same command continues", flush=True)
            return
        kept.do(unit)


def main() -> None:
    """Do what is not done, print the bars, write the result and the page, and fail if a bar is not met."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of a unit ends too
    quick = bool(os.environ.get("QUICK"))
    seeds = int(os.environ.get("SEEDS", 1 if quick else 5))
    minutes = os.environ.get("MINUTES")
    if os.environ.get("ONLY") != "report":
        perform(WORK, seeds, float(minutes) if minutes else None, quick=quick)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = tables.collect(WORK, seeds, quick=quick) | {
        "quick": quick,
        "seeds_asked": seeds,
        "commit": commit,
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load": list(os.getloadavg())},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    result["bars"] = bars.of(result)
    target, name = (WORK, "training-quick") if quick else (RESULTS, "training")
    write_json(target / f"{name}.json", rounded(result))
    page.write(target, name, result)
    for found in result["bars"]:
        value = "not measured" if found["value"] is None else f"{found['value']:.4g}"
        print(
            f"{'holds' if found['holds'] else 'FAILS'}  {found['name']}: {value} ({found['bound']}, {found['seeds']} seeds)"
        )
    print(f"written: {target / name}.json and .md")
    if not all(found["holds"] for found in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
