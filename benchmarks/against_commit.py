"""Cost of a request and of a row now and in an earlier commit, measured alternately on one machine.

make bench-against COMMIT=abc1234            # nine turns; QUICK=1: three

Each checkout is measured in a separate process that first builds the quick world of the serving benchmark (with a real Redis)
with its own code, so neither reads files of the other. Then the two run alternately: requests in process from bytes to bytes
(the workload of bench-serving), and the engine alone by mode (that of bench-testtime). CPU time is compared, since it does not
include other processes; p99 of wall time is shown.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = {1: 200, 100: 60, 500: 20}  # candidates per request: requests per turn
MODES = ("off", "gate", "uttsi")
BOUND = 1.05  # new over old
READY, MEASURED = "ready", "measured"  # first words of the lines that a measuring process prints

Turn = dict[str, dict[str, float]]  # by workload


def measure(folder: Path) -> None:
    """Build the world with the code in the working directory, then measure the workload named by each line of standard
    input."""
    warnings.simplefilter("ignore")
    import numpy as np
    import torch
    from prometheus_client import CollectorRegistry

    from benchmarks.serving import inside  # type: ignore[attr-defined]
    from benchmarks.serving import world as worlds
    from tests.features import redis_server

    torch.set_num_threads(1)
    with redis_server.running(folder) as address:
        os.environ["THINKTWICE_REDIS_ADDRESS"] = address
        world = worlds.make_world(folder, True)
        calls: dict[str, tuple[int, list[Callable[[], Any]]]] = {}
        for mode in MODES:
            features = inside.FeatureConfig(timeout_ms=10_000)  # a busy machine must not change what is computed
            config = inside.ServingConfig(access_log=False, shed=False, deadline_ms=600_000, features=features)
            service = inside.open_service(
                world.bundles[mode], config, model_name="ctr", feature_store=world.store, registry=CollectorRegistry()
            )
            engine = inside.load_bundle(world.bundles[mode]).engine
            for size, count in SIZES.items():
                requests = inside.requests_of(world.store, worlds.SCHEMA, count=count, candidates=size, seed=0)
                bodies = [inside.body_of(request, "v1") for request in requests]
                calls[f"request, {mode}, {size}"] = (size, [lambda b=b, s=service: s.answer(b, {}) for b in bodies])
                scorer, batches = service.scorer, []
                for value in requests[:20]:
                    request = scorer.parser.parse(value, "request")
                    read = scorer.reader.read(request.user_id, request.candidates)
                    batches.append(scorer.encode(request, read)[0])
                calls[f"engine, {mode}, {size}"] = (size, [lambda b=b, e=engine: e.score(b) for b in batches])
        for _, workload_calls in calls.values():
            for call in workload_calls[:20]:
                reply = call()
                assert getattr(reply, "status", 200) == 200, reply
        gc.collect()
        gc.freeze()
        print(f"{READY} {json.dumps(list(calls))}", flush=True)
        for line in sys.stdin:
            size, workload_calls = calls[line.strip()]
            wall, cpu = [], []
            for call in workload_calls:
                began, used = time.perf_counter(), time.process_time()
                call()
                cpu.append(1000 * (time.process_time() - used))
                wall.append(1000 * (time.perf_counter() - began))
            spent = statistics.median(cpu)
            figures = {
                "cpu_ms_per_request": spent,
                "cpu_us_per_row": 1000 * spent / size,
                "p99_ms": float(np.percentile(wall, 99)),
            }
            print(f"{MEASURED} {json.dumps(figures)}", flush=True)


class Side:
    """The process that measures one checkout."""

    def __init__(self, checkout: Path, folder: Path, log: IO[str]) -> None:
        folder.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        # Without -P the folder of this file is first on the path, and its folder `serving` would hide the package.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--measure", str(folder)]
        self.log = Path(log.name)
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def wait(self, word: str) -> str:
        """The remainder of the next line that starts with ``word``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        raise SystemExit(f"the measured process ended: see {self.log}\n{self.log.read_text()[-2000:]}")

    def measured(self, workload: str) -> dict[str, float]:
        """One turn of a workload: medians over its calls, and p99 of wall time."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{workload}\n")
        self.process.stdin.flush()
        figures: dict[str, float] = json.loads(self.wait(MEASURED))
        return figures

    def close(self) -> None:
        """End the process, which stops its Redis."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def checkout_of(commit: str, folder: Path) -> Iterator[Path]:
    """A git worktree of a commit, removed at the end."""
    subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(folder), commit], cwd=ROOT, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=False)


def compare(old: list[Turn], new: list[Turn]) -> dict[str, dict[str, float]]:
    """Medians over turns; the ratio is the median over turns of the ratio within a turn."""
    out = {}
    for name in new[0]:
        sides = {"old": old, "new": new}
        values = {
            f"{side}_{figure}": round(statistics.median(turn[name][figure] for turn in turns), 4)
            for side, turns in sides.items()
            for figure in new[0][name]
        }
        ratios = [n[name]["cpu_ms_per_request"] / o[name]["cpu_ms_per_request"] for o, n in zip(old, new, strict=True)]
        out[name] = {**values, "ratio": round(statistics.median(ratios), 4)}
    return out


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the bars, write the result, and fail if a bar is not met."""
    parser = argparse.ArgumentParser(description="Compare with an earlier commit.")
    parser.add_argument("commit", nargs="?", default=os.environ.get("COMMIT"), help="what to compare with")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.measure is not None:
        measure(chosen.measure)
        return
    if not chosen.commit:
        parser.error("name a commit: make bench-against COMMIT=abc1234")
    turns = 3 if os.environ.get("QUICK") else 9
    sha = subprocess.run(
        ["git", "rev-parse", "--verify", f"{chosen.commit}^{{commit}}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    old: list[Turn] = []
    new: list[Turn] = []
    with tempfile.TemporaryDirectory(prefix="tt-against-") as name, ExitStack() as stack:
        folder = Path(name)
        checkout = stack.enter_context(checkout_of(sha, folder / "checkout"))
        sides = []
        for number, checkout_dir in enumerate((checkout, ROOT)):
            side = Side(checkout_dir, folder / str(number), stack.enter_context((folder / f"{number}.log").open("w")))
            stack.callback(side.close)
            workloads = json.loads(side.wait(READY))
            print(f"{'old' if number == 0 else 'new'}: world built", flush=True)
            sides.append(side)
        for number in range(turns):
            for results in (old, new):
                results.append({})
            pair = [(old, sides[0]), (new, sides[1])]
            for workload in workloads:  # back to back, since the speed of the machine drifts
                for results, side in pair if number % 2 == 0 else pair[::-1]:
                    results[-1][workload] = side.measured(workload)
            print(f"turn {number + 1} of {turns}: measured", flush=True)
    compared = compare(old, new)
    bars = [
        {
            "name": f"CPU time, {name}: new over old",
            "value": figures["ratio"],
            "bound": f"<= {BOUND}",
            "holds": figures["ratio"] <= BOUND,
        }
        for name, figures in compared.items()
    ]
    result = {
        "commit": sha[:12],
        "turns": turns,
        "workloads": compared,
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "load": list(os.getloadavg())},
        "versions": {n: version(n) for n in ("torch", "numpy", "polars", "pydantic", "feast", "redis")},
        "bars": bars,
    }
    from thinktwice.files import write_json

    target = ROOT / "benchmarks" / "results" / "against.json"
    write_json(target, result)
    for bar in bars:
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {bar['value']} ({bar['bound']})")
    print(f"written: {target}")
    if not all(bar["holds"] for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
