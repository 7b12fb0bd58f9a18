"""The demonstration, seed by seed: whether its three experiments end as they should.

make bench-demo-ab             # 10 seeds, each with the three experiments
QUICK=1 make bench-demo-ab     # one seed of the run that ends first: the planted worse model

The past is simulated, a model is trained on it, and its events are counted once. Every seed is a demonstration of that world in processes
of its own: other users, another assignment to arms, another planted defect, servers started anew. Minutes are those of a whole
demonstration: the training is added to every seed. The result of each seed is kept under .thinktwice/bench/demo-ab and not measured
again, so that the long form can be interrupted; SEEDS=N ends it after so many.
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

from demo.experiment.session import TITLES, prepare_demo, run_demo
from thinktwice.experiment.record import RECORD, decisions_of, read_lines, state_of
from thinktwice.files import read_json, write_json
from thinktwice.stats.plan import power_of

RESULT = Path(__file__).parent / "results" / "demo_ab.json"
WORK = Path(".thinktwice/bench/demo-ab")
RIGHT = {"better": "promote", "worse": "roll_back", "same": "stop"}
SEEDS = 10
WORLD_SEED, TREATMENT, RATE = 0, "corrected", 80.0
MOST_MINUTES, MOST_FIRST_MINUTES, MOST_GIB, LEAST_POWER = 8.0, 3.0, 3.0, 0.99
LOOK_EVERY = 2.0  # seconds between two looks at the memory, which takes some CPU time itself
PREPARE, DEMONSTRATE = "prepare", "demonstrate"  # what a child process does
TRUE = "true.json"  # true effects, written by a child process


def prepared(kept: Path) -> dict[str, Any]:
    """Train once, in a process of its own; minutes and CPU minutes of it."""
    path, folder = kept / "prepared.json", kept / "prepared"
    if not path.is_file():
        print("training", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(path, watched([PREPARE, str(folder)], kept / "prepared.log", None))
    found: dict[str, Any] = read_json(path)
    return found


def measure(seed: int, runs: tuple[str, ...], kept: Path) -> dict[str, Any]:
    """One demonstration: outcomes by run, minutes, minutes to the first look, peak memory of all its processes."""
    folder = kept / f"seed-{seed}"
    arguments = [DEMONSTRATE, str(kept / "prepared"), str(folder), str(seed), *runs]
    found = watched(arguments, folder.with_suffix(".log"), folder)
    return {"seed": seed, **found, "runs": {run: outcome(folder, run) for run in runs}}


def watched(arguments: list[str], log: Path, folder: Path | None) -> dict[str, Any]:
    """Run a child process of this module, and measure it.

    Args:
        folder: of a demonstration, whose first look is awaited.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    load, begin, first, peak, cpu = os.getloadavg()[0], time.monotonic(), None, 0, Cpu()
    with log.open("wb") as output:
        command = [sys.executable, "-m", "benchmarks.demo_ab", *arguments]
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, cpu.look(process))
                if folder is not None and first is None and any(decisions_of(read_lines(p)) for p in records(folder)):
                    first = time.monotonic() - begin
                time.sleep(LOOK_EVERY)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed: see {log}")
    return {
        "minutes": (time.monotonic() - begin) / 60,
        "first_minutes": None if first is None else first / 60,
        "cpu_minutes": cpu.seconds / 60,
        "peak_gib": peak / 2**30,
        "load": [load, os.getloadavg()[0]],
    }


def child(arguments: list[str]) -> None:
    """What a child process does."""
    if arguments[0] == PREPARE:
        prepare_demo(Path(arguments[1]), treatment=TREATMENT, seed=WORLD_SEED)
        return
    source, folder, seed, *runs = arguments[1:]
    ends = run_demo(
        [run for run in TITLES if run in runs], treatment=TREATMENT, rate=RATE, seed=WORLD_SEED, work=Path(folder),
        server="torchserve", prepared=Path(source), users=int(seed),
    )  # fmt: skip
    true = {run: (e.relative, e.relative_se) for run, seen in ends.items() if (e := seen.true_effect) is not None}
    write_json(Path(folder) / TRUE, true)


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
    """How one experiment ended, as its record says; ``power``: probability with which the plan finds the true effect."""
    lines = read_lines(folder / "experiments" / f"demo-{run}" / RECORD)
    last = decisions_of(lines)[-1]
    effect, horizon = last.verdict.primary[0], last.file.horizon
    true, true_se = read_json(folder / TRUE).get(run, (None, None))
    assert horizon is not None and horizon.units is not None and effect.se and effect.control
    units = [arm.units for arm in last.evidence.arms]
    error = effect.se / effect.control * min(1.0, sum(units) / horizon.units) ** 0.5  # expected at the horizon
    power = min(1.0, power_of("group_sequential", horizon.looks, last.file.alpha, true / error)) if true else None
    return {
        "ended": state_of(lines).ended,
        "right": state_of(lines).ended == RIGHT[run],
        "looks": len(decisions_of(lines)),
        "seconds": last.evidence.days * 86_400,
        "units": units,
        "planned_units": horizon.units,
        "alpha": last.file.alpha,
        "effect": effect.relative,
        "interval": [effect.relative_low, effect.relative_high],
        "true": true,
        "true_se": true_se,
        "power": power,
        "report": (folder / "reports" / f"demo-{run}.html").stat().st_size > 0,
    }


def bars(training: dict[str, Any], seeds: list[dict[str, Any]], runs: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every limit, and whether it is met. On a machine that was busy with other work minutes are those of two cores' CPU time."""
    found = []
    wanted = 1 if len(runs) == 1 else SEEDS
    for run in runs:
        right = sum(seed["runs"][run]["right"] for seed in seeds)
        name = f"{TITLES[run]}: ends in {RIGHT[run].replace('_', ' ')}, of {len(seeds)} seeds that were run"  # type: ignore[index]
        found.append(bar(name, right, f"= {wanted}", right == wanted))
    powers = [seed["runs"][run]["power"] for seed in seeds for run in runs if run != "same"]
    least = min((power for power in powers if power is not None), default=0.0)
    found.append(
        bar("least power of the plans to find the true effects", least, f">= {LEAST_POWER:g}", least >= LEAST_POWER)
    )
    every = [training, *seeds]
    busy = max(max(one["load"]) for one in every) > 2 * (os.cpu_count() or 1)
    least_minutes = [one["cpu_minutes"] / 2 if busy else one["minutes"] for one in every]
    minutes = least_minutes[0] + max(least_minutes[1:])
    kind = "minutes of two cores (the machine was busy)" if busy else "minutes"
    found.append(bar(f"most {kind} of a demonstration", minutes, f"<= {MOST_MINUTES:g}", minutes <= MOST_MINUTES))
    if not busy:
        first = [seed["first_minutes"] for seed in seeds]
        worst = training["minutes"] + max(99.0 if one is None else one for one in first)
        found.append(
            bar("most minutes to the first figure", worst, f"<= {MOST_FIRST_MINUTES:g}", worst <= MOST_FIRST_MINUTES)
        )
    peak = max(one["peak_gib"] or 0.0 for one in every)
    found.append(bar("peak memory of all processes, GiB", peak, f"<= {MOST_GIB:g}", peak <= MOST_GIB))
    return found


def bar(name: str, value: float, bound: str, holds: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": bound, "holds": bool(holds)}


def main() -> None:
    """Measure what is missing, print, write the result, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    runs = ("worse",) if quick else tuple(RIGHT)
    kept = WORK / ("quick" if quick else "full")
    if quick:
        shutil.rmtree(kept, ignore_errors=True)
    training, seeds = prepared(kept), []
    for seed in range(1 if quick else int(os.environ.get("SEEDS", SEEDS))):
        path = kept / f"seed-{seed}.json"
        if not path.is_file():
            print(f"seed {seed}: {', '.join(runs)}", flush=True)
            write_json(path, measure(seed, runs, kept))
        seeds.append(read_json(path))
        print(json.dumps(seeds[-1]), flush=True)
    result: dict[str, Any] = {"bars": bars(training, seeds, runs), "quick": quick, "training": training, "seeds": seeds}
    machine = {"system": platform.platform(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "thinktwice": version("thinktwice")}
    write_json(RESULT, result | {"machine": machine, "versions": versions})
    print(json.dumps(result["bars"], indent=2))
    if not all(one["holds"] for one in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:]:
        child(sys.argv[1:])
    else:
        main()
