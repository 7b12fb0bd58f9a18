"""Logs with fields of kind list, with and without weights of their elements, in every format, and their validation."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from thinktwice.data.ingest import ingest
from thinktwice.schema import parse_schema
from thinktwice.validate.split import SplitResult, split_log

WEIGHED = """\
name: weighed
time: {format: order}
label: {column: y}
entities: {user: {key: user}, item: {key: item}}
quarantine_budget: 1
fields:
- {name: tags, entity: item, kind: list, length: 4, weights: {name: tag_weights, column: "tag scores"}}
- {name: moods, kind: list, separator: ";", weights: mood_weights}
"""
DESCRIBED = parse_schema(WEIGHED, where="test")
SEPARATORS = {"tags": "|", "tag scores": "|", "moods": ";", "mood_weights": ";", "past": ","}


def weighed_log(rows: int = 40) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "y": [n % 2 for n in range(rows)],
            "user": [f"u{n % 5}" for n in range(rows)],
            "item": [f"i{n % 7}" for n in range(rows)],
            "tags": [[f"t{k}" for k in range(n % 7 % 4)] for n in range(rows)],
            "tag scores": [[0.5 + k for k in range(n % 7 % 4)] if n % 7 != 2 else None for n in range(rows)],
            "moods": [list("abc"[: n % 4]) for n in range(rows)],
            "mood_weights": [[(n + k) % 3 for k in range(n % 4)] for n in range(rows)],
        },
        schema_overrides={"tag scores": pl.List(pl.Float64), "mood_weights": pl.List(pl.Int64)},
    )


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    lists = {name: separator for name, separator in SEPARATORS.items() if name in frame.columns}
    return frame.with_columns(
        pl.col(name).cast(pl.List(pl.String)).list.join(separator) for name, separator in lists.items()
    )


def written(frame: pl.DataFrame, folder: Path, ending: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"log.{ending}"
    if ending == "csv":
        as_text(frame).write_csv(path)
    elif ending == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)
    return path


def cleaned(frame: pl.DataFrame, folder: Path, schema: str, ending: str = "parquet") -> SplitResult:
    path = written(frame, folder, ending)
    (folder / "s.yaml").write_text(schema)
    ingest("log", path, folder / "s.yaml", folder / "raw")
    return split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")
