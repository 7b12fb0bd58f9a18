"""The analysis of 100 million exposures of a million users: time and memory of a separate process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from thinktwice.experiment.evidence import collect
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.unit_sums import LATENCY, UNITS, arm_latencies, arm_moments, write_unit_sums
from thinktwice.parquet import num_rows, write_table
from thinktwice.records.served import REQUEST_COLUMNS

ROWS_A_REQUEST = 10
PART = 5_000_000
START = 1_767_225_600
FILE = ExperimentFile.model_validate(
    {
        "version": 1, "name": "big", "salt": "big", "coverage": 1.0,
        "arms": [{"name": "control", "bundle": "a"}, {"name": "treatment", "bundle": "b"}],
        "horizon": {"days": 14, "looks": 14},
        "guardrails": [{"metric": "error_rate", "worse": "increase", "margin": 0.001},
                       {"metric": "latency_p99", "worse": "increase", "margin": 0.1, "relative": True}],
    }
)  # fmt: skip


def write_logs(folder: Path, exposures: int, users: int) -> None:
    """Joined exposures with outcomes, and their requests, in parts."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    if done.exists() and done.read_text() == f"{exposures} {users}":
        return
    rng = np.random.default_rng(0)
    activity = np.exp(rng.normal(0, 1.0, users)).cumsum()
    activity /= activity[-1]
    key = rng.integers(0, 2**63, users, dtype=np.uint64)
    rate = rng.beta(2, 38, users)
    for part in range(0, exposures, PART):
        count = min(PART, exposures - part) // ROWS_A_REQUEST
        user = np.searchsorted(activity, rng.random(count))
        at = pa.array(START * 10**6 + rng.integers(0, 14 * 86_400 * 10**6, count)).cast(pa.timestamp("us", "UTC"))
        arm = pa.DictionaryArray.from_arrays(pa.array((user % 2).astype(np.int8)), ["control", "treatment"]).cast(
            pa.string()
        )
        rows = np.repeat(np.arange(count), ROWS_A_REQUEST)
        outcomes = pa.table(
            {
                "log_experiment": pa.repeat(pa.scalar("big"), len(rows)),
                "log_assigned_arm": arm.take(rows),
                "log_enrolled": pa.repeat(pa.scalar(True), len(rows)),
                "log_unit": pa.array(key[user]).take(rows),
                "log_at": at.take(rows),
                "label": (rng.random(len(rows)) < rate[user][rows]).astype(np.int8),
                "log_probability": rate[user][rows],
                "log_num_paths": pa.array(np.where(rng.random(len(rows)) < 0.1, 8, 1).astype(np.int32)),
            }
        )
        write_table(outcomes, folder / f"outcomes-{part // PART:03}.parquet", compression="zstd")
        requests = {
            "request_id": [f"{part + i:016x}" for i in range(count)], "at": at, "experiment": pa.repeat(pa.scalar("big"), count),
            "arm": arm, "served": arm, "unit": pa.array(key[user]),
            "code": pa.array(np.where(rng.random(count) < 0.001, 503, 200).astype(np.int32)),
            "ms": rng.lognormal(3, 0.5, count), "attempts": pa.array(np.ones(count, np.int32)),
        }  # fmt: skip
        table = pa.table(
            {
                f.name: pa.array(requests[f.name], f.type)
                if not isinstance(requests[f.name], pa.Array)
                else requests[f.name].cast(f.type)
                for f in REQUEST_COLUMNS
            }
        )
        write_table(table, folder / f"requests-{part // PART:03}.parquet", compression="zstd")
    done.write_text(f"{exposures} {users}")


def analyse(folder: Path) -> dict[str, Any]:
    """Sums per unit, moments and the verdict, timed."""
    from thinktwice.experiment.decision import decide

    began, cpu = time.monotonic(), _cpu()
    outcomes, requests = sorted(folder.glob("outcomes-*.parquet")), sorted(folder.glob("requests-*.parquet"))
    write_unit_sums(outcomes, requests, folder / "sums")
    summed = time.monotonic()
    sums = arm_moments([folder / "sums" / UNITS], "big")
    latencies = arm_latencies([folder / "sums" / LATENCY], "big")
    collected = collect(
        FILE, at=datetime(2026, 1, 15, tzinfo=timezone.utc), days=14, days_at_coverage=14, sums=sums, latencies=latencies,
        slices={}, exposures=None, outcomes=None,
    )  # fmt: skip
    verdict = decide(FILE, collected)
    return {
        "exposures": sum(num_rows(f) for f in outcomes),
        "users": sum(a.units for a in collected.arms),
        "seconds": time.monotonic() - began,
        "seconds_of_sums": summed - began,
        "cpu_seconds": _cpu() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "load_average": os.getloadavg()[0],
        "status": verdict.decision.status,
        "relative": verdict.primary[0].relative,
    }


def measure(folder: Path, exposures: int, users: int) -> dict[str, Any]:
    """Write the logs if they do not exist, and analyse them in a new process."""
    write_logs(folder, exposures, users)
    command = [sys.executable, "-m", "benchmarks.experiment.scale", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(analyse(Path(sys.argv[1]))))
