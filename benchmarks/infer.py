"""Speed of a user's own log: `data infer-schema` on 10 million rows, and reading a CSV against polars in the same run.

make bench-infer              # 10 million rows
QUICK=1 make bench-infer      # 1 million rows; the same time bound per row, plus some seconds for the start
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from thinktwice.data.ingest import simulate
from thinktwice.data.simulator import SimConfig
from thinktwice.files import write_json
from thinktwice.parquet import scan_frame

RESULT = Path(__file__).parent / "results" / "infer.json"
SECONDS_PER_10M = 60.0
START_SECONDS = 5.0
MAX_RSS_GB = 2.0
MIN_SPEED = 0.5  # of polars' scan of the CSV into parquet
LISTS = ("item_vector", "candidates")  # left out of the CSV: polars writes no lists

INFER = "import sys; from thinktwice.data.infer.infer import infer_schema; infer_schema(sys.argv[1])"
INGEST = "import sys; from thinktwice.data.ingest import ingest; ingest('log', *sys.argv[1:4])"
POLARS = "import sys, polars as pl; pl.scan_csv(sys.argv[1], infer_schema=False).sink_parquet(sys.argv[2])"


def child(code: str, *arguments: str) -> dict[str, float]:
    """Wall time, CPU time and peak memory of a Python program in its own process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{code}: exit status {process.returncode}")
    unit = 1 if platform.system() == "Darwin" else 1024
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_gb": usage.ru_maxrss * unit / 1e9,
    }


def measure(rows: int) -> dict[str, object]:
    """All figures of a simulated log of ``rows`` rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(SimConfig(rows=rows), folder / "raw")
        log = scan_frame(folder / "raw" / "log.parquet").drop("row_id", "source_row")
        log.sink_parquet(folder / "log.parquet")
        log.drop(LISTS).sink_csv(folder / "log.csv")
        schema = (folder / "raw" / "schema.yaml").read_text(encoding="utf-8").split("vectors:")[0]
        rest = (folder / "raw" / "schema.yaml").read_text(encoding="utf-8").split("statistics:")[1]
        (folder / "schema.yaml").write_text(f"{schema}statistics:{rest}", encoding="utf-8")
        figures: dict[str, object] = {
            "rows": rows,
            "csv_bytes_per_row": (folder / "log.csv").stat().st_size / rows,
            "infer_parquet": child(INFER, str(folder / "log.parquet")),
            "infer_csv": child(INFER, str(folder / "log.csv")),
        }
        # Alternating, so that the load of the machine meets both.
        ours, theirs = [], []
        for number in range(3):
            theirs.append(child(POLARS, str(folder / "log.csv"), str(folder / "polars.parquet")))
            ours.append(
                child(INGEST, str(folder / "log.csv"), str(folder / "schema.yaml"), str(folder / f"out{number}"))
            )
        figures["ingest_csv"] = min(ours, key=lambda of: of["seconds"])
        figures["polars_csv"] = min(theirs, key=lambda of: of["seconds"])
        best = [min(of[key] for of in theirs) / min(of[key] for of in ours) for key in ("seconds", "cpu_seconds")]
        figures["ingest_speed_against_polars"], figures["ingest_cpu_against_polars"] = best
    return figures


def bars_of(figures: dict[str, Any], limit: float) -> list[dict[str, Any]]:
    """Every figure that is asked for, with its bound; ``limit`` is in seconds."""
    values = [(f"{name}, seconds", figures[name]["seconds"], "<=", limit) for name in ("infer_parquet", "infer_csv")]
    for name in ("infer_parquet", "infer_csv", "ingest_csv"):
        values.append((f"{name}, peak memory, GB", figures[name]["peak_rss_gb"], "<=", MAX_RSS_GB))
    values.append(("CSV ingest over polars, speed", figures["ingest_speed_against_polars"], ">=", MIN_SPEED))
    return [
        {
            "name": name,
            "value": value,
            "bound": f"{sign} {bound}",
            "holds": value <= bound if sign == "<=" else value >= bound,
        }
        for name, value, sign, bound in values
    ]


def main() -> None:
    """Measure, print the bars, write the result, and fail if a bar is not met."""
    quick = bool(os.environ.get("QUICK"))
    rows = 1_000_000 if quick else 10_000_000
    figures = measure(rows)
    bars = bars_of(figures, SECONDS_PER_10M * rows / 1e7 + (START_SECONDS if quick else 0.0))
    for bar in bars:
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {bar['value']:.3g} ({bar['bound']})")
    if not quick:
        machine = {"system": platform.platform(), "cores": os.cpu_count()}
        versions = {name: version(name) for name in ("polars", "duckdb", "pyarrow")}
        write_json(RESULT, {"bars": bars, "figures": figures, "machine": machine, "versions": versions})
    if not all(bar["holds"] for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
