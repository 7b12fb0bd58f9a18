"""The value of thinking twice: every mode, baseline and control on the same trunks, and their cost.

make bench-testtime             # all data sets and backbones, five training seeds, three path seeds (an hour and a half on two cores)
QUICK=1 make bench-testtime     # one small simulated log, one backbone, two seeds (under two minutes)

Trained networks and scores are kept under .thinktwice/bench/testtime and not computed again. Results:
benchmarks/results/testtime.json with the list ``bars``, testtime-slices.json, and the page benchmarks/results/testtime.md with its plots.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from benchmarks import combinations
from benchmarks.testtime import bars, page, plan, tables
from benchmarks.testtime.compare import Compared
from benchmarks.testtime.cost_table import cost_table
from benchmarks.testtime.plan import FULL, QUICK, Part, trunks_of
from thinktwice.files import write_json

RESULTS = Path(__file__).parents[1] / "results"


def collect(parts: tuple[Part, ...]) -> dict[str, Any]:
    """All tables of the runs of ``parts``."""
    out: dict[str, Any] = {
        "tables": [],
        "slices": [],
        "uplift": [],
        "oracle": [],
        "lists": [],
        "recovered": [],
        "shares": [],
    }
    facts: dict[str, Any] = {}
    for part in parts:
        trunks = trunks_of(part.data)
        info = {name: part_info.model_dump(mode="json") for name, part_info in trunks.data.info.parts.items()}
        facts.setdefault(part.data, info | {"l2": {}})
        facts[part.data]["l2"][part.backbone] = trunks.l2_trials(part.backbone)
        rows = tables.rows_of(trunks.data)
        where = {"data": part.data, "backbone": part.backbone}
        compared = {regime: Compared(rows, tables.scores_of(part, regime)) for regime in part.regimes}
        for regime, comparison in compared.items():
            keys = where | {"regime": regime}
            out["tables"].append(tables.table(part, regime, comparison))
            out["slices"] += tables.slice_table(part, regime, comparison)
            out["uplift"].append(keys | {"curves": tables.uplift_table(comparison)})
            out["oracle"].append(keys | {"logloss": tables.oracle_table(comparison)})
            out["lists"].append(keys | {"methods": tables.list_table(comparison)})
            out["shares"].append(keys | tables.gain_shares(comparison))
            print(f"{part.data} {part.backbone} {regime}: tables", flush=True)
        if len(compared) == 2:
            shares = {
                m: tables.recovered(compared["tuned"], compared["overtrained"], m)
                for m in ("lean", "gate", "gate by field", "gate without counts", "uttsi", "matt")
            }
            out["recovered"].append(where | {"share": shares})
    return out | {"data": facts}


def rounded(value: Any, digits: int = 5) -> Any:
    """``value`` with floats rounded to ``digits`` significant digits; intervals are much wider than the rounding."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(part, digits) for key, part in value.items()}
    return [rounded(part, digits) for part in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Measure, print the bars, write the result and the page, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    parts = QUICK if quick else FULL
    plan.perform(parts)
    result = collect(parts)
    result["cost"] = cost_table(parts, quick)
    result["combinations"] = combinations.measure(quick)
    result |= {
        "quick": quick,
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads_of_the_engine": 1},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }
    result["bars"] = bars.of(result)
    name = "testtime-quick" if quick else "testtime"
    target = plan.WORK if quick else RESULTS  # the short form only shows that everything runs
    write_json(target / f"{name}-slices.json", rounded({"slices": result["slices"]}))
    write_json(target / f"{name}.json", rounded({key: part for key, part in result.items() if key != "slices"}))
    page.write(target, name, result)
    for bar in result["bars"]:
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {json.dumps(bar['value'])} ({bar['bound']})")
    print(f"written: {target / name}.json and .md")
    if not quick and not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
