"""A clean log with instant statistics, and the feature store of it."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl

from feature_repo.store import build
from tests.data.instant.oracle import Row
from tests.feedback.streams import SECOND, schema_of
from thinktwice.schema import SCHEMA_FILE, LogSchema

FIRST = 1_700_006_400 * SECOND  # a midnight


def random_log(rows: int, seed: int = 0, step: int = 600 * SECOND) -> list[Row]:
    """Rows of few users and items, some without an id or a value, some at one instant."""
    draw, time, out = random.Random(seed), FIRST, []
    for _ in range(rows):
        time += draw.choice((0, 1, step, 3 * step))
        user = draw.choice((None, "u", "v", "é", "w"))
        item = draw.choice(("i", "j", "k", "l", "ü 1"))
        out.append(
            Row(
                time,
                draw.random() < 0.3,
                user,
                item,
                (draw.choice(("a", "b", None)), "a"),
                (draw.choice(("x", None)), "f"),
            )
        )
    return out


def clean_table(log: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row_id": [f"{n:016x}" for n in range(len(log))],
            "event_time": pl.Series([r.time for r in log], dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            "label": pl.Series([int(r.clicked) for r in log], dtype=pl.Int8),
            "user_id": pl.Series([r.user for r in log], dtype=pl.String),
            "item_id": pl.Series([r.item for r in log], dtype=pl.String),
            "site": pl.Series(["s"] * len(log)),
            "genre": pl.Series([r.topics[0] for r in log], dtype=pl.String),
            "kind": pl.Series([r.topics[1] for r in log], dtype=pl.String),
            "city": pl.Series([r.attributes[0] for r in log], dtype=pl.String),
            "sex": pl.Series([r.attributes[1] for r in log], dtype=pl.String),
        }
    )


def write_clean(folder: Path, log: list[Row], schema: LogSchema) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    clean_table(log).write_parquet(folder / "clean.parquet")
    (folder / SCHEMA_FILE).write_text(schema.to_yaml(), encoding="utf-8")
    return folder


SEQUENCES = (
    {"name": "recent_items", "of": "item_id", "length": 5},
    {"name": "seen_genres", "of": "genre", "clicks_only": False},
)


def full_schema(click: int = 5, no_click: int = 600) -> LogSchema:
    return schema_of({"feedback_delay": {"click": click, "no_click": no_click}}, SEQUENCES, (1, 7, 0))


def make_store(folder: Path, log: list[Row], schema: LogSchema, redis: str = "", version: str = "t-1") -> Path:
    clean = write_clean(folder / "clean", log, schema)
    build(
        clean,
        folder / "store",
        feature_version=version,
        online="redis" if redis else "sqlite",
        redis_address=redis,
    )
    return folder / "store"
