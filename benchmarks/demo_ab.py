"""The demonstration as a user runs it, seed by seed: whether its three experiments end as they should.

make bench-demo-ab             # 10 seeds, each with the three experiments (8 minutes a seed on two idle cores)
QUICK=1 make bench-demo-ab     # one seed of the run that ends first: the planted worse model

Every seed is one `thinktwice experiment demo` in a process of its own: another simulated world, another model trained on its log, other
users, servers started anew. Nothing is read but what it leaves: the records of its experiments, its reports, its memory and its clock.
The result of each seed is kept under .thinktwice/bench/demo-ab and not measured again, so that the long form can be interrupted.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from demo.experiment.session import TITLES
from thinktwice.experiment.record import RECORD, decisions_of, read_lines, state_of
from thinktwice.files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "demo_ab.json"
WORK = Path(".thinktwice/bench/demo-ab")
RIGHT = {"better": "promote", "worse": "roll_back", "same": "stop"}
SEEDS = 10
MOST_MINUTES, MOST_FIRST_MINUTES, MOST_GIB = 8.0, 3.0, 3.0
LOOK_EVERY = 0.5  # seconds between two looks at the memory


def measure(seed: int, runs: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """One demonstration: outcomes by run, minutes, minutes to the first look, peak memory of all its processes."""
    command = [sys.executable, "-m", "thinktwice", "experiment", "demo", "--seed", str(seed), "--folder", str(folder)]
    for run in runs:
        command += ["--run", run]
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    load, begin, first, peak, cpu = os.getloadavg()[0], time.monotonic(), None, 0, Cpu()
    with folder.with_suffix(".log").open("wb") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, cpu.look(process))
                if first is None and any(decisions_of(read_lines(path)) for path in records(folder)):
                    first = time.monotonic() - begin
                time.sleep(LOOK_EVERY)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        sys.exit(f"seed {seed} failed: see {folder.with_suffix('.log')}")
    found: dict[str, Any] = {
        "seed": seed,
        "minutes": (time.monotonic() - begin) / 60,
        "first_minutes": None if first is None else first / 60,
        "cpu_minutes": cpu.seconds / 60,
        "peak_gib": peak / 2**30,
        "load": [load, os.getloadavg()[0]],
        "runs": {run: outcome(folder, run) for run in runs},
    }
    return found


class Cpu:
    """CPU seconds of a process and all that it ever started, as far as they were seen."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, float], float] = {}

    @property
    def seconds(self) -> float:
        return sum(self._of.values())

    def look(self, process: psutil.Process) -> int:
        """Add what was used; the memory in use now, shared pages divided among the processes that share them."""
        used = 0
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            return 0
        for member in family:
            try:
                times = member.cpu_times()
                self._of[(member.pid, member.create_time())] = times.user + times.system
                used += member.memory_full_info().pss
            except (psutil.Error, AttributeError):  # it has ended
                continue
        return used


def records(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"experiments/*/{RECORD}") if path.stat().st_size]


def outcome(folder: Path, run: str) -> dict[str, Any]:
    """How one experiment ended, as its record says."""
    lines = read_lines(folder / "experiments" / f"demo-{run}" / RECORD)
    last = decisions_of(lines)[-1]
    effect = last.verdict.primary[0]
    return {
        "ended": state_of(lines).ended,
        "right": state_of(lines).ended == RIGHT[run],
        "looks": len(decisions_of(lines)),
        "seconds": last.evidence.days * 86_400,
        "units": [arm.units for arm in last.evidence.arms],
        "effect": effect.relative,
        "interval": [effect.relative_low, effect.relative_high],
        "report": (folder / "reports" / f"demo-{run}.html").stat().st_size > 0,
    }


def bars(seeds: list[dict[str, Any]], runs: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every limit, and whether it is met. On a machine that was busy with other work minutes are those of two cores' CPU time."""
    found = []
    for run in runs:
        right = sum(seed["runs"][run]["right"] for seed in seeds)
        name = f"{TITLES[run]}: ends in {RIGHT[run].replace('_', ' ')}, of {len(seeds)} seeds"  # type: ignore[index]
        found.append(bar(name, right, f"= {len(seeds)}", right == len(seeds)))
    busy = max(max(seed["load"]) for seed in seeds) > 2 * (os.cpu_count() or 1)
    minutes = max(seed["cpu_minutes"] / 2 if busy else seed["minutes"] for seed in seeds)
    kind = "minutes of two cores (the machine was busy)" if busy else "minutes"
    found.append(bar(f"most {kind} of a demonstration", minutes, f"<= {MOST_MINUTES:g}", minutes <= MOST_MINUTES))
    first = [seed["first_minutes"] for seed in seeds]
    if not busy:
        worst = max(99.0 if one is None else one for one in first)
        found.append(
            bar("most minutes to the first figure", worst, f"<= {MOST_FIRST_MINUTES:g}", worst <= MOST_FIRST_MINUTES)
        )
    peak = max(seed["peak_gib"] for seed in seeds)
    found.append(bar("peak memory of all processes, GiB", peak, f"<= {MOST_GIB:g}", peak <= MOST_GIB))
    return found


def bar(name: str, value: float, bound: str, holds: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": bound, "holds": bool(holds)}


def main() -> None:
    """Measure what is missing, print, write the result, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    runs = ("worse",) if quick else tuple(RIGHT)
    kept = WORK / ("quick" if quick else "full")
    seeds = []
    for seed in range(1 if quick else SEEDS):
        path = kept / f"seed-{seed}.json"
        if quick or not path.is_file():
            print(f"seed {seed}: {', '.join(runs)}", flush=True)
            write_json(path, measure(seed, runs, kept / f"seed-{seed}"))
        seeds.append(read_json(path))
        print(json.dumps(seeds[-1]), flush=True)
    result: dict[str, Any] = {"bars": bars(seeds, runs), "quick": quick, "seeds": seeds}
    machine = {"system": platform.platform(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "thinktwice": version("thinktwice")}
    write_json(RESULT, result | {"machine": machine, "versions": versions})
    print(json.dumps(result["bars"], indent=2))
    if not all(one["holds"] for one in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
