"""The value of evidence over a tuned trunk: counters for every row, retrieved outcomes for some or all rows.

make bench-evidence             # MovieLens-1M by time and at random, the drifting simulator; two seeds (hours)
QUICK=1 make bench-evidence     # MovieLens-100K by time and a small simulator; one seed
SETS="ml-1m by time, 2400 users" SEEDS=2 make bench-evidence

Changes are against the trunk scored once, with intervals paired and clustered by user. Results: benchmarks/results/evidence.json
with the list ``bars``; the short form writes benchmarks/results/evidence-quick.json, chosen sets evidence-part.json.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

from benchmarks.evidence.data import SETS, load
from benchmarks.evidence.study import study
from thinktwice.files import write_json

RESULTS = Path(__file__).parents[1] / "results"
WORK = Path(".thinktwice/bench/evidence")
QUICK_SETS, FULL_SETS = ("ml-100k by time", "simulator, small"), ("ml-1m by time", "ml-1m at random", "simulator")
RECIPES = {"ml-100k by time": "ml-100k", "simulator, small": "ml-100k"}


def bars_of(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Bars on every log, for the mean over seeds: the correction beats the trunk and a second trunk, counters of other rows
    gain nothing, and retrieved outcomes gain more."""
    out = []

    def bar(name: str, value: float, bound: float, *, least: bool) -> None:
        holds = value >= bound if least else value <= bound
        out.append({"name": name, "value": value, "bound": bound, "holds": bool(holds)})

    def mean(seed_runs: list[dict[str, Any]], *path: str) -> float:
        values = []
        for run in seed_runs:
            at: Any = run
            for name in path:
                at = at[name]
            values.append(float(at))
        return float(np.mean(values))

    for name, log_runs in runs.items():
        now = ("delays", "at once")
        gain = mean(log_runs, *now, "correction", "auc_change", "value")
        bar(f"{name}: AUC of the correction over the trunk", gain, 0.0, least=True)
        second = mean(log_runs, "two_trunks", "auc_change", "value")
        bar(f"{name}: AUC of the correction over the trunk, against a second trunk", gain, second, least=True)
        other_counters = abs(mean(log_runs, *now, "other_counters", "auc_change", "value"))
        bar(f"{name}: AUC change by counters of other rows", other_counters, 5e-4, least=False)
        if all("retrieval" in run["delays"]["at once"] for run in log_runs):
            retrieval_gain = mean(log_runs, *now, "retrieval", "over_correction", "value")
            bar(f"{name}: AUC of retrieved outcomes over the correction", retrieval_gain, 0.0, least=True)
    return out


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The changes of AUC, x 1e-4, of every seed."""
    lines = []
    for name, seed_runs in runs.items():
        for run in seed_runs:
            lines.append(
                f"{name}, seed {run['seed']}: trunk AUC {run['trunk']['auc']:.4f}, two {_cell(run['two_trunks'])}"
            )
            for delay, methods in run["delays"].items():
                cells = [f"{m} {_cell(methods[m])}" for m in ("correction", "trees", "other_counters")]
                if "retrieval" in methods:
                    cells.append(f"retrieval {_cell(methods['retrieval']['all_rows'])}")
                lines.append(f"  labels known {delay}: " + ", ".join(cells))
                for trigger, shares in methods.get("retrieval", {}).get("shares", {}).items():
                    kept = ", ".join(f"{float(s):.0%} {_percent(v['kept'])}" for s, v in shares.items())
                    lines.append(f"    kept of the second look by {trigger}: {kept}")
    return "\n".join(lines)


def _cell(measured: dict[str, Any]) -> str:
    change = measured["auc_change"]
    return f"{1e4 * change['value']:+.0f} ({1e4 * change['low']:+.0f} to {1e4 * change['high']:+.0f})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def main() -> None:
    """Run, print, write the results, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    chosen = os.environ.get("SETS")
    names = tuple(chosen.split(";")) if chosen else QUICK_SETS if quick else FULL_SETS
    if unknown := sorted(set(names) - set(SETS)):
        sys.exit(f"the log {unknown[0]!r} is unknown: choose of {', '.join(SETS)}, separated by ';'")
    seeds = range(int(os.environ.get("SEEDS", 1 if quick else 2)))
    runs: dict[str, list[dict[str, Any]]] = {}
    start = time.process_time()
    for name in names:
        sets = load(name, WORK)
        runs[name] = [study(sets, RECIPES.get(name, "ml-1m"), seed) for seed in seeds]
    bars = bars_of(runs)
    result = {
        "quick": quick,
        "runs": runs,
        "bars": bars,
        "cpu_seconds": time.process_time() - start,
        "machine": {"cpus": os.cpu_count(), "load_average_1m": os.getloadavg()[0], "platform": platform.platform()},
        "versions": {"numpy": np.__version__, "torch": torch.__version__, "sklearn": sklearn.__version__},
    }
    form = "-part" if chosen else "-quick" if quick else ""
    write_json(RESULTS / f"evidence{form}.json", result)
    print(table(runs))
    print(json.dumps(bars, indent=2))
    if not all(bar["holds"] for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
