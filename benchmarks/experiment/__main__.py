"""Check of the statistics of online experiments: error rates, power and coverage.

make bench-experiment             # 10,000 A/A experiments by scenario, 100 M exposures (about half an hour on two cores)
QUICK=1 make bench-experiment     # a few hundred, and 2 M exposures (under two minutes)

The result of every step of the long form is kept under .thinktwice/bench/experiment/full and not measured again. Results:
benchmarks/results/experiment.json with the list ``bars``, and the page experiment.md with its plots.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import scipy

from benchmarks.experiment import assigning, bars, false_positives, page, power, scale
from thinktwice.files import read_json, write_json

RESULTS = Path(__file__).parents[1] / "results"
WORK = Path(".thinktwice/bench/experiment")


def measure(quick: bool) -> dict[str, Any]:
    """All figures, the slow ones last."""
    result: dict[str, Any] = {"quick": quick}
    size = (2_000_000, 50_000) if quick else (100_000_000, 1_000_000)
    steps = {
        "power": lambda: power.power(20_000 if quick else 200_000),
        "coverage": lambda: power.coverage(400 if quick else 10_000),
        "cuped": lambda: power.cuped(400 if quick else 10_000),
        "sample_ratio": lambda: assigning.sample_ratios(300 if quick else 5_000),
        "assignment": lambda: assigning.assignment(100_000 if quick else 1_000_000),
        "false_positives": lambda: false_positives.measure(400 if quick else 10_000),
        "scale": lambda: scale.measure(WORK / ("small" if quick else "big"), *size),
    }
    folder = WORK / ("quick" if quick else "full")
    for name, step in steps.items():
        if (folder / f"{name}.json").exists() and not quick:
            result[name] = read_json(folder / f"{name}.json")
        else:
            result[name] = step()
            write_json(folder / f"{name}.json", result[name])
        print(f"{name}: {json.dumps(result[name])[:400]}", flush=True)
    return result


def main() -> None:
    """Measure, print the bars, write the result and the page, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    result = measure(quick)
    result |= {
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "duckdb": duckdb.__version__,
        },
    }
    result["bars"] = bars.of(result)
    name = "experiment-quick" if quick else "experiment"
    target = WORK if quick else RESULTS  # the short form only shows that everything runs
    write_json(target / f"{name}.json", result)
    page.write(target, name, result)
    if quick:
        print("too few simulations for a verdict: by chance a rate may lie outside its bound")
    for bar in result["bars"]:
        word = ("inside" if bar["holds"] else "outside") if quick else ("holds" if bar["holds"] else "FAILS")
        print(f"{word}  {bar['name']}: {bar['value']:.5g} ({bar['bound']})")
    print(f"written: {target / name}.json and .md")
    if not quick and not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
