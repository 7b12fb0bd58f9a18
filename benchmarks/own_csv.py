"""An inferred schema against a hand-written one: MovieLens as three CSV files, read with `data infer-schema` and `pipeline run` alone.

make bench-own-csv            # MovieLens-100K and -1M, several seeds, the recipe of each data set
QUICK=1 make bench-own-csv    # MovieLens-100K and a tenth of the users of -1M, one seed, recipe tiny

DATA=ml-100k measures one of the two and keeps the figures of the other; SEEDS=1 takes fewer seeds than three.

The hand-written schema reads the same rows in one table, with the columns that its source computes. Compared is the test AUC of one pass.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from thinktwice.data.cache import DEFAULT, VARIABLE
from thinktwice.data.ingest import ingest
from thinktwice.data.sources.registry import builtin_schema_text
from thinktwice.evaluate.evaluation import recorded_evaluation
from thinktwice.files import read_json, write_json
from thinktwice.parquet import num_rows, read_frame, write_frame

RESULT = Path(__file__).parent / "results" / "own_csv.json"
MOST_BELOW = 0.003  # AUC of the inferred schema below that of the hand-written one


def write_files(name: str, folder: Path, users: float) -> None:
    """``ratings.csv``, ``users.csv`` and ``items.csv``, and ``log.parquet`` with the rows as the source of ``name`` reads them, of a
    share of the users."""
    ingest(name, None, None, folder / "raw")
    log = read_frame(folder / "raw" / "log.parquet").drop("row_id", "source_row")
    log = log.filter(pl.col("user_id").hash(seed=1) % 1000 < int(1000 * users))
    write_frame(log, folder / "log.parquet")
    log.select("user_id", "item_id", "rating", "timestamp").write_csv(folder / "ratings.csv")
    of_user = log.select("user_id", "gender", "age", "occupation", "zip_code").unique("user_id", maintain_order=True)
    of_user.write_csv(folder / "users.csv")
    genres = pl.col("genre").str.replace_all(" ", "|").alias("genres")
    of_item = log.select("item_id", "title", "release_year", genres).unique("item_id", maintain_order=True)
    of_item.write_csv(folder / "items.csv")
    (folder / "hand.yaml").write_text(builtin_schema_text(name), encoding="utf-8")


def command(folder: Path, *arguments: str) -> str:
    """The output of a command; ends the benchmark with it if the command fails."""
    done = subprocess.run(
        [sys.executable, "-m", "thinktwice.cli", *arguments], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"thinktwice {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


class Run(NamedTuple):
    """Test AUC of one pass, the sentence of the verdict, and the warnings of the validation."""

    auc: float
    ends: str
    warnings: list[str]


def run(folder: Path, log: str, schema: str, work: str, recipe: str, seed: int) -> Run:
    """One run of the pipeline with a state of its own."""
    said = command(
        folder, "pipeline", "run", "--source", "log", "--path", log, "--schema", schema, "--recipe", recipe,
        "--seed", str(seed), "--test-time", "off", "--work", work, "--state", f"{work}/state-{seed}",
    )  # fmt: skip
    if os.environ.get("SAY"):
        print(said, flush=True)
    bundle = max((folder / work).glob("pipeline/*/evaluate/bundle"), key=lambda path: path.stat().st_mtime)
    evaluation = recorded_evaluation(bundle)
    base = next(column for column in evaluation.columns if column.key == evaluation.shipped)
    assert base.metrics.auc is not None
    ends = " ".join(re.findall(r"^(?:Blessed|Not blessed).*(?:\n\S.*)*", said, re.M))
    return Run(base.metrics.auc, ends, [line for line in said.splitlines() if "warning" in line.lower()])


def compare(name: str, users: float, recipe: str, seeds: range) -> dict[str, Any]:
    """Figures of one data set."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(name, folder, users)
        files = ("ratings.csv", "users.csv", "items.csv")
        said = command(folder, "data", "infer-schema", *files, "--out", "s.yaml")
        kinds = (("inferred", "ratings.csv", "s.yaml"), ("hand", "log.parquet", "hand.yaml"))
        runs = {kind: [run(folder, log, schema, kind, recipe, seed) for seed in seeds] for kind, log, schema in kinds}
        means = {kind: sum(one.auc for one in of) / len(of) for kind, of in runs.items()}
        return {
            "data": name,
            "share_of_users": users,
            "recipe": recipe,
            "seeds": len(seeds),
            "rows": num_rows(folder / "log.parquet"),
            "auc": {kind: [one.auc for one in of] for kind, of in runs.items()},
            "below": means["hand"] - means["inferred"],
            "ends": {kind: [one.ends for one in of] for kind, of in runs.items()},
            "warnings": {kind: [one.warnings for one in of] for kind, of in runs.items()},
            "said_by_infer_schema": said.splitlines(),
            "inferred_schema": (folder / "s.yaml").read_text(encoding="utf-8").splitlines(),
        }


def bars_of(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bound of each data set."""
    return [
        {
            "name": f"{figure['data']}: test AUC of the inferred schema below the hand-written one, mean of {figure['seeds']} seeds",
            "value": figure["below"],
            "bound": f"<= {MOST_BELOW}",
            "holds": figure["below"] <= MOST_BELOW,
        }
        for figure in figures
    ]


def main() -> None:
    """Compare, write the figures, and fail where an inferred schema is worse than allowed."""
    os.environ.setdefault(VARIABLE, str(DEFAULT.resolve()))  # commands run in other folders
    quick = bool(os.environ.get("QUICK"))
    seeds = range(int(os.environ.get("SEEDS", "3")))
    plan = (("ml-100k", 1.0, "ml-100k", seeds), ("ml-1m", 1.0, "ml-1m", seeds))
    if quick:
        plan = (("ml-100k", 1.0, "tiny", range(1)), ("ml-1m", 0.1, "tiny", range(1)))
    chosen = os.environ.get("DATA")
    figures = [compare(*one) for one in plan if chosen in (None, one[0])]
    if chosen and not quick and RESULT.exists():
        figures += [figure for figure in read_json(RESULT)["figures"] if figure["data"] != chosen]
    figures.sort(key=lambda figure: figure["data"])
    bars = bars_of(figures)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    print(f"{usage.ru_utime + usage.ru_stime:.0f} s of CPU")
    for bar in bars:
        print(f"{'holds' if bar['holds'] else 'FAILS'}  {bar['name']}: {bar['value']:.4f} ({bar['bound']})")
    if not quick:
        machine = {"system": platform.platform(), "cores": os.cpu_count()}
        versions = {name: version(name) for name in ("torch", "polars", "duckdb")}
        write_json(RESULT, {"bars": bars, "figures": figures, "machine": machine, "versions": versions})
    if not all(bar["holds"] for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
