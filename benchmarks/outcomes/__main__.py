"""Exposures and outcomes of a large experiment: time, memory and disk of ``thinktwice exposures`` and ``thinktwice outcomes``.

make bench-outcomes              # 100 million exposures of a million users, 10 per request, over 14 days; needs 40 GB of disk
QUICK=1 make bench-outcomes      # 1 million exposures

Each command runs in a process of its own with its default memory. Disk is what is below its work folder at the highest, spilled
data included, without the logs it reads. Bars are on CPU time per core of two, because wall time on a busy machine says little;
both are in the result.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.outcomes.logs import FILE, SCHEMA, Size, write_logs
from serving.feedback.outcomes import JOINED, Joined
from thinktwice.experiment.exposures import read_collected
from thinktwice.files import read_json, write_json

RESULT = Path(__file__).parents[1] / "results" / "outcomes.json"
FULL, QUICK = Size(100_000_000, 1_000_000), Size(1_000_000, 50_000)
FOLDER = (
    "THINKTWICE_BENCH_FOLDER"  # environment variable: where the logs are, or are written; default a temporary folder
)
EXPOSURES = "THINKTWICE_BENCH_EXPOSURES"  # environment variable: another number of exposures
CORES = 2
MOST_MINUTES, MOST_GIB, MOST_DISK_GIB = 10.0, 4.0, 40.0


def run_command(arguments: list[str], work: Path) -> dict[str, float]:
    """Run one command of the command line; its time, memory and disk."""
    began = time.monotonic()
    process = psutil.Popen([sys.executable, "-m", "thinktwice", *arguments])
    peak, disk, cpu, stop = 0, 0, 0.0, threading.Event()
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
            times = process.cpu_times()
            cpu = max(cpu, times.user + times.system)
        except psutil.Error:
            pass
        disk = max(disk, used(work))
        stop.wait(0.2)
    if process.returncode:
        sys.exit(f"{arguments[0]} failed")
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": cpu,
        "peak_gib": peak / 2**30,
        "disk_gib": disk / 2**30,
    }


def used(folder: Path) -> int:
    """Bytes on the disk below a folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_blocks * 512
            except OSError:  # removed meanwhile
                continue
    return total


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """Both commands over logs of this size, and what they counted."""
    write_logs(folder, size)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    write_json(folder / "experiment.yaml", FILE.model_dump(mode="json"))
    (folder / "shop.yaml").write_text(SCHEMA.to_yaml(), encoding="utf-8")
    served = [part for arm in ("control", "treatment") for part in ("--served", str(folder / f"served-{arm}"))]
    collected = ["exposures", str(folder / "experiment.yaml"), "--gateway", str(folder / "gateway"), *served]
    joined = ["outcomes", "--log", str(folder / "events"), "--schema", str(folder / "shop.yaml"), "--include-running"]
    figures = {
        "exposures": run_command([*collected, "--work", str(work)], work),
        "outcomes": run_command([*joined, "--work", str(work)], work),
    }
    exposures = read_collected(work / "exposures").counts
    outcomes = Joined.model_validate(read_json(work / "outcomes" / JOINED))
    counts = {
        "requests": exposures.requests, "exposures": exposures.exposures, "lost": exposures.lost,
        "superseded": exposures.superseded, "units": sum(arm.units for arm in exposures.arms),
        **outcomes.counts.model_dump(exclude={"exposures"}), "log_rows": outcomes.log.rows if outcomes.log else 0,
    }  # fmt: skip
    return {"counts": counts, "figures": figures}


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every limit, and whether it is met."""
    found, counts = [], result["counts"]
    for command, figures in result["figures"].items():
        minutes = figures["cpu_seconds"] / CORES / 60
        for what, value, most in (
            (f"minutes of {CORES} cores", minutes, MOST_MINUTES),
            ("peak memory, GiB", figures["peak_gib"], MOST_GIB),
            ("peak disk, GiB", figures["disk_gib"], MOST_DISK_GIB),
        ):
            found.append(
                {"name": f"{command}: {what}", "value": value, "bound": f"<= {most:g}", "holds": value <= most}
            )
    missing = counts["requests"] * 10 - counts["exposures"] - counts["lost"] * 10
    found.append(
        {"name": "exposures that are neither joined nor lost", "value": missing, "bound": "= 0", "holds": missing == 0}
    )
    return found


def main() -> None:
    """Measure, print, write the result, and fail if a bar is not met."""
    quick, load = bool(os.environ.get("QUICK")), os.getloadavg()[0]
    size = QUICK if quick else FULL
    if exposures := os.environ.get(EXPOSURES):
        size = Size(int(exposures), max(1000, int(exposures) // 100))
    with tempfile.TemporaryDirectory(prefix="thinktwice-outcomes-") as scratch:
        result = measure(Path(os.environ.get(FOLDER) or scratch), size)
    machine = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
    }
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("duckdb", "pyarrow")}}
    result |= {"bars": bars(result), "size": {"exposures": size.exposures, "users": size.users}, "quick": quick}
    write_json(RESULT, result | {"machine": machine, "versions": versions})
    print(json.dumps(result, indent=2))
    if not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
