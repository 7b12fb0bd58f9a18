"""What the answers at the top of a model's report cost: their CPU seconds beside those of the run that they belong to.

make bench-model-report            # the demo of MovieLens-100K, and 120,000 rows of the simulated log
QUICK=1 make bench-model-report    # 20,000 rows of the simulated log with the recipe tiny

The answers are the comparison with baselines, the curves, the importance of fields and the weak slices (:mod:`thinktwice.evaluate.findings`),
the page, and its numbers as CSV and JSON. They are measured a second time, in a process of their own, on the files of the run. CPU seconds
are those of all threads and steps, so other work on the machine does not count.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from thinktwice.data.cache import DEFAULT, VARIABLE
from thinktwice.evaluate import compare
from thinktwice.evaluate.report import render
from thinktwice.evaluate.tidy import write_numbers
from thinktwice.files import write_json

RESULT = Path(__file__).parent / "results" / "model_report.json"
MOST = 0.15  # of the CPU seconds of the run

P = ParamSpec("P")
T = TypeVar("T")


class Plan(NamedTuple):
    """One run: source, number of rows (0: all), recipe."""

    source: str
    rows: int
    recipe: str


class Clock:
    """CPU seconds by name, of all threads of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """The same function; what it takes is added to ``name``."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

        return timed


def measure(pipeline: Path, out: Path) -> None:
    """Evaluate the models of a finished run again, and print the CPU seconds of each part of the report as JSON."""
    clock = Clock()
    compare.findings = clock.of("findings", compare.findings)

    def only(pattern: str) -> Path:
        (found,) = pipeline.glob(f"*/{pattern}")
        return found

    start = time.process_time()
    result = compare.evaluate(
        only("build-training-set/training_set"), only("finetune/model"), only("finetune-2/model"), only("fit-test-time/test_time"),
        out / "evaluation",
    )  # fmt: skip
    clock.of("page", render)(result.content, result.timings, result.candidate_timings)
    clock.of("numbers", write_numbers)(result.content, out / "numbers")
    print(json.dumps(clock.seconds | {"evaluation": time.process_time() - start}))


def cpu_of(*arguments: str, folder: Path) -> tuple[float, str]:
    """CPU seconds of a command and of all processes that it starts, and its output."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} in {folder}: {done.stdout}{done.stderr}")
    return used() - before, done.stdout


def figures(plan: Plan) -> dict[str, Any]:
    """CPU seconds of one run and of its report."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole, _ = cpu_of(
            "-m", "thinktwice.cli", "pipeline", "run", "--source", plan.source, "--limit", str(plan.rows), "--recipe", plan.recipe,
            "--work", str(folder / "work"), "--state", str(folder / "state"), folder=folder,
        )  # fmt: skip
        _, said = cpu_of("-m", "benchmarks.model_report", str(folder / "work" / "pipeline"), folder=folder)
        parts = json.loads(said.splitlines()[-1])
        report = sum(seconds for name, seconds in parts.items() if name != "evaluation")
        out = {
            **plan._asdict(),
            "run_cpu_s": whole,
            "report_cpu_s": report,
            "parts_cpu_s": parts,
            "share": report / whole,
        }
        print(json.dumps(out, indent=2), flush=True)
        return out


def bars_of(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bound of each run."""
    return [
        {
            "name": f"{one['source']}, recipe {one['recipe']}: CPU seconds of the report over those of the run",
            "value": one["share"],
            "bound": f"<= {MOST}",
            "holds": one["share"] <= MOST,
        }
        for one in measured
    ]


def main() -> None:
    """Measure, write the figures, and fail where a report costs more than allowed."""
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as out:
            measure(Path(sys.argv[1]), Path(out))
        return
    os.environ.setdefault(VARIABLE, str(DEFAULT.resolve()))
    quick = bool(os.environ.get("QUICK"))
    plans = [Plan("sim", 20_000, "tiny")] if quick else [Plan("ml-100k", 0, "ml-100k"), Plan("sim", 120_000, "ml-100k")]
    measured = [figures(plan) for plan in plans]
    bars = bars_of(measured)
    for bar in bars:
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {bar['value']:.4f} ({bar['bound']})")
    if not quick:
        machine = {"system": platform.platform(), "cores": os.cpu_count()}
        versions = {name: version(name) for name in ("torch", "polars", "numpy", "scipy")}
        write_json(RESULT, {"bars": bars, "figures": measured, "machine": machine, "versions": versions})
    if not all(bar["holds"] for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
