"""Speed of the simulator: rows per second and peak memory of 10 million rows streamed to parquet.

make bench-sim              # 10 million rows
QUICK=1 make bench-sim      # 1 million rows; the same time bound per row, plus a second for the start
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
from pathlib import Path

import numpy
import pyarrow

from thinktwice.files import write_json

RESULT = Path(__file__).parent / "results" / "sim.json"
SECONDS_PER_10M = 60.0
MAX_RSS_GB = 2.0

CHILD = """
import sys
from thinktwice.data.simulator import SimConfig
from thinktwice.data.ingest import simulate
simulate(SimConfig(rows=int(sys.argv[1])), sys.argv[2])
"""


def measure(rows: int) -> dict[str, float]:
    """Draw ``rows`` in a separate process, whose peak memory is that of the simulator."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "log"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", CHILD, str(rows), str(out)], check=True)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = (out / "log.parquet").stat().st_size
    unit = 1 if platform.system() == "Darwin" else 1024
    return {
        "rows": rows,
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "rows_per_second": rows / seconds,
        "peak_rss_gb": after.ru_maxrss * unit / 1e9,
        "parquet_bytes_per_row": size / rows,
    }


def main() -> None:
    """Measure, print, write the result, and fail if a bar is not met."""
    rows = 1_000_000 if os.environ.get("QUICK") else 10_000_000
    figures = measure(rows)
    bound = SECONDS_PER_10M * rows / 1e7 + (1.0 if rows < 10_000_000 else 0.0)
    bars = [
        {"name": f"seconds for {rows:,} rows", "value": figures["seconds"], "bound": bound},
        {"name": "peak memory, GB", "value": figures["peak_rss_gb"], "bound": MAX_RSS_GB},
    ]
    for bar in bars:
        bar["holds"] = bar["value"] <= bar["bound"]
    machine = {
        "cpus": os.cpu_count(),
        "load_average_1m": os.getloadavg()[0],
        "platform": platform.platform(),
        "processor": _processor(),
    }
    versions = {"python": platform.python_version(), "numpy": numpy.__version__, "pyarrow": pyarrow.__version__}
    write_json(RESULT, {"figures": figures, "bars": bars, "machine": machine, "versions": versions})
    print(f"{rows:,} rows in {figures['seconds']:.1f} s ({figures['cpu_seconds']:.1f} s of processor time), ", end="")
    print(f"{figures['rows_per_second']:,.0f} rows/s, peak memory {figures['peak_rss_gb']:.2f} GB")
    print(json.dumps(bars, indent=2))
    if not all(bar["holds"] for bar in bars):
        sys.exit(1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
