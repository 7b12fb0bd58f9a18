"""Overhead of serving, and servers under load, with a real Redis, TorchServe and the KServe predictor.

make bench-serving             # about thirteen minutes on two idle cores
QUICK=1 make bench-serving     # a small world and short runs, under two minutes
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import backends, inside, outside, page
from benchmarks.serving.world import make_world
from tests.features import redis_server
from thinktwice.files import write_json
from thinktwice.release.feature_store import REDIS_ADDRESS

RESULTS = Path(__file__).parents[1] / "results"
WORK = Path(".thinktwice/bench/serving")


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every required figure, with its bound."""
    out: list[dict[str, Any]] = []

    def bar(name: str, value: float, bound: str, holds: bool) -> None:
        out.append({"name": name, "value": round(value, 4), "bound": bound, "holds": bool(holds)})

    overhead = result["inside"]["off"]["other"]["p50"]
    bar("all but the model, 100 candidates in process, p50 ms", overhead, "<= 1", overhead <= 1.0)
    for rows, spent in result["backends"]["microseconds"].items():
        ratio = spent["eager"] / spent["chosen"]
        bar(f"chosen backend over eager torch, rows {rows}", ratio, ">= 2", ratio >= 2)
    hop, engine = result["hop"], result["inside"]["off"]["engine"]["p99"]
    ratio = hop["ours"]["p99"] / (hop["nothing"]["p99"] + engine)
    bar("p99 through TorchServe over that of doing nothing plus the model's own", ratio, "<= 1.3", ratio <= 1.3)
    lookup = result["lookups"]
    p99 = lookup["snapshot"]["wall_p99"]
    bar("1 user and 500 items, default reader, p99 ms", p99, "< 10", p99 < 10)
    ratio = lookup["feast"]["cpu_p50"] / lookup["snapshot"]["cpu_p50"]
    bar("CPU of the feature store's SDK over the default reader's", ratio, ">= 10", ratio >= 10)
    ratio = result["throughput"]["ours"] / result["throughput"]["obvious"]
    bar("throughput over the obvious stack", ratio, ">= 2", ratio >= 2)
    for server, loads in result["loads"].items():
        for mode in ("gate", "uttsi"):
            for percent in ("50", "80"):
                on, off = (np.array(loads[percent][m]["p99_ms_by_round"]) for m in (mode, "off"))
                ratio = float(np.median(on / off))
                bar(f"{server}: p99 {mode} over off at {percent} %, median of rounds", ratio, "<= 1.15", ratio <= 1.15)
        for mode in ("off", "gate", "uttsi"):
            step = loads["110"][mode]
            bad = sum(step["outcomes"][o] for o in ("lost", "failed", "wrong", "not sent"))
            bar(f"{server}: lost or wrong at 110 %, {mode}", bad, "= 0", bad == 0)
            late = step["answered_beyond_deadline_by_a_tenth"] + step["refused_beyond_deadline_by_a_tenth"]
            bar(f"{server}: beyond the deadline by more than 10 % at 110 %, {mode}", late, "= 0", late == 0)
    return out


def main() -> None:
    """Measure, print the bars, write the result and the page, and fail if a bar is not met."""
    warnings.simplefilter("ignore")
    quick = bool(os.environ.get("QUICK"))
    WORK.mkdir(parents=True, exist_ok=True)
    # Workers load the other handlers from this package.
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="tt-serving-") as name:
        folder = Path(name)
        with redis_server.running(folder) as address:
            os.environ[REDIS_ADDRESS] = address
            world = make_world(folder, quick)
            print("world: built", flush=True)
            result: dict[str, Any] = {"inside": inside.overhead(world, 120 if quick else 1500)}
            result["backends"] = backends.backends(world, 10 if quick else 60)
            result["lookups"] = inside.lookups(world, 40 if quick else 400)
            print("in process: measured", flush=True)
            seconds, rounds = (1.0, 2) if quick else (5.0, 4)
            result["hop"] = outside.hop(world, folder, seconds, rounds)
            result["throughput"] = outside.throughput(world, folder, seconds, rounds)
            print("TorchServe: measured", flush=True)
            servers = ("torchserve",) if quick else ("torchserve", "kserve")
            length, turns = (2.0, 1) if quick else (3.0, 9)
            result["loads"] = {s: outside.loads(world, folder, s, length, turns) for s in servers}
    result |= {
        "quick": quick,
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {n: version(n) for n in ("torch", "torchserve", "kserve", "feast", "redis", "numpy", "polars")},
    }
    result["bars"] = bars(result)
    target = WORK if quick else RESULTS
    file = "serving-quick" if quick else "serving"
    write_json(target / f"{file}.json", result)
    page.write(target, file, result)
    for entry in result["bars"]:
        print(
            f"{'holds' if entry['holds'] else 'FAILS'}  {entry['name']}: {json.dumps(entry['value'])} ({entry['bound']})"
        )
    print(f"written: {target / file}.json and .md")
    if not quick and not all(entry["holds"] for entry in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
