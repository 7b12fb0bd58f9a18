"""Combination counts: build time, size, lookup time, and whether their bound holds.

make bench-combinations              # 100 million events
QUICK=1 make bench-combinations      # 4 million

An event is one occurrence of a combination: one key added. Keys are drawn from a Zipf distribution (exponent 1.1) over five
million combinations, outside the measured time. The sketch is built in one pass in a separate process, whose peak memory
(interpreter and numpy included) is reported. The bound is checked for keys drawn uniformly from those that occurred and for as
many that never occurred; the lower of both shares is reported. Counts are read as in a server: mapped from their file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from thinktwice.combinations.counts import CombinationCounts, maskable_pairs
from thinktwice.files import write_json

RESULT = Path(__file__).parent / "results" / "combinations.json"
EVENTS, QUICK_EVENTS = 100_000_000, 4_000_000
MAX_RSS_MB = 400.0
MAX_LOOKUP_MS = 1.0
ROWS, FIELDS = 100, 12  # 64 of the 66 pairs of 12 fields
REPEATS = 400

CHILD = """
import json, sys, time
import numpy as np
from thinktwice.combinations.sketch import CHUNK, FrequencySketch
from thinktwice.splitmix import mix
events, distinct = int(sys.argv[1]), 5_000_000
reach = np.cumsum(np.arange(1, distinct + 1) ** -1.1)
rng, sketch, seconds, done = np.random.default_rng(0), FrequencySketch.empty(), 0.0, 0
truth = np.zeros(distinct, np.uint32)
while done < events:
    size = min(CHUNK, events - done)
    drawn = np.searchsorted(reach, rng.random(size) * reach[-1]).clip(0, distinct - 1)
    keys = mix(drawn.astype(np.uint64))
    start = time.perf_counter()
    sketch.add(keys)
    seconds += time.perf_counter() - start
    np.add.at(truth, drawn, np.uint32(1))
    done += size
counts = sketch.finished()
came = np.random.default_rng(1).permutation(np.flatnonzero(truth).astype(np.uint32))[:200_000]
keys = np.concatenate([came, distinct + np.arange(len(came))])
truth = np.concatenate([truth[came], np.zeros(len(came), np.uint32)])
lower, upper = counts.lower(mix(keys.astype(np.uint64))), counts.upper(mix(keys.astype(np.uint64)))
holds = lower <= truth
# Not ru_maxrss, which a process inherits from the one that started it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(json.dumps({
    "events": events, "seconds": seconds, "peak_mb": peak,
    "bound_holds_came": float(holds[:len(came)].mean()), "bound_holds_never_came": float(holds[len(came):].mean()),
    "never_below": bool((upper >= truth).all()),
    "noise": counts.noise, "kept_apart": len(counts.keys), "kept_apart_whole": float(counts.whole.mean()),
}))
"""


def measure(quick: bool) -> dict[str, Any]:
    """Figures and bars."""
    events = QUICK_EVENTS if quick else EVENTS
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, "-c", CHILD, str(events)], check=True, capture_output=True, text=True, env=environment
    )
    figures = json.loads(made.stdout) | lookup()
    bound_holds = min(figures["bound_holds_came"], figures["bound_holds_never_came"])
    bars = [
        {
            "name": f"combination counts: peak memory of {events:,} events, MB",
            "value": figures["peak_mb"],
            "bound": f"<= {MAX_RSS_MB:g}",
        },
        {
            "name": "combination counts: 64 pairs of 100 rows, median ms",
            "value": figures["lookup_ms"],
            "bound": f"<= {MAX_LOOKUP_MS:g}",
        },
        {
            "name": "combination counts: share of keys whose lower bound holds",
            "value": bound_holds,
            "bound": ">= 0.95",
        },
    ]
    bars[0]["holds"] = figures["peak_mb"] <= MAX_RSS_MB
    bars[1]["holds"] = figures["lookup_ms"] <= MAX_LOOKUP_MS
    bars[2]["holds"] = bound_holds >= 0.95 and figures["never_below"]
    return {"figures": figures, "bars": bars}


def lookup() -> dict[str, float]:
    """Time of a lookup of 64 pairs of 100 rows, from encoded ids to supports, on one core."""
    rng = np.random.default_rng(2)
    sizes = (20_000, 5_000, 1_000, *[200] * (FIELDS - 3))
    ids = np.stack([(size * rng.random(200_000) ** 3).astype(np.int32).clip(0, size - 1) for size in sizes], axis=1)
    made = CombinationCounts.fit([ids], maskable_pairs(np.arange(FIELDS), 64), (), sizes)
    with tempfile.TemporaryDirectory() as folder:
        made.save(folder)
        counts = CombinationCounts.load(folder)
    times = []
    for start in np.linspace(0, len(ids) - ROWS, REPEATS).astype(int):
        rows = ids[start : start + ROWS].astype(np.int64)
        began = time.perf_counter()
        counts.reliability(rows)
        times.append((time.perf_counter() - began) * 1000)
    return {"lookup_ms": float(np.median(times)), "lookup_p99_ms": float(np.quantile(times, 0.99))}


def main() -> None:
    """Measure, print, write the result, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    result = measure(quick)
    machine = {"system": platform.platform(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    write_json(RESULT, result | {"quick": quick, "machine": machine, "versions": versions})
    print(json.dumps(result, indent=2))
    if not all(bar["holds"] for bar in result["bars"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
