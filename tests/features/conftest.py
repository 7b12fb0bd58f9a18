"""A small clean log with everything in it: ties, slates, changing attributes, missing values, vectors."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from thinktwice.schema import LogSchema, parse_schema

SCHEMA = """
name: small-log
time: {column: at, format: s}
label: {column: click}
entities: {user: {key: user_id}, item: {key: item_id, title: name}}
fields:
- {name: gender, entity: user}
- {name: genre, entity: item}
- {name: price, entity: item, kind: numeric}
- {name: slot}
- {name: hour, derived: hour}
sequences:
- {name: last_clicks, of: item_id, length: 5}
- {name: last_genres, of: genre, length: 3, clicks_only: false}
vectors:
- {name: picture, dim: 3}
statistics: {windows_days: [2, 7, 0]}
"""
START = datetime(2024, 2, 26, 22, 0, tzinfo=timezone.utc)

Row = dict[str, Any]


@dataclass(frozen=True)
class CleanLog:
    """A clean log folder and its content as Python rows, in file order."""

    folder: Path
    schema: LogSchema
    rows: list[Row]


def make_rows(seed: int = 0, num_rows: int = 500) -> list[Row]:
    """Slates of one to four items at one instant; users come in bursts; three rows have no user."""
    rng = random.Random(seed)
    rows: list[Row] = []
    at = START
    while len(rows) < num_rows:
        at += timedelta(seconds=rng.choice([0, 1, 40, 7_000, 40_000]))
        user = f"u{int(rng.paretovariate(0.7)) % 9}"
        for _ in range(rng.randint(1, 4)):
            item = f"i'{int(rng.paretovariate(0.6)) % 12}"
            number = len(rows)
            rows.append(
                {
                    "row_id": f"{(number * 7919) % 65521:016x}",
                    "event_time": at,
                    "label": int(rng.random() < 0.4),
                    "user_id": None if number in (5, 50, 200) else user,
                    "item_id": item,
                    "gender": None if user == "u1" else ("f" if number % 100 < 60 else "m"),
                    "genre": None if item == "i'2" else f"g{hash_of(item) % 3}",
                    "price": float(number // 40) if item != "i'3" else None,
                    "slot": rng.choice("ab"),
                    "hour": str(at.hour),
                    "picture": None if item == "i'4" else [float(hash_of(item)), 0.25, -1.5],
                    "title": item.upper(),
                }
            )
    return sorted(rows[:num_rows], key=lambda r: (r["event_time"], r["row_id"]))


def hash_of(item: str) -> int:
    return sum(map(ord, item))


def write_clean(folder: Path, schema_text: str, rows: list[Row]) -> CleanLog:
    folder.mkdir(parents=True, exist_ok=True)
    schema = parse_schema(schema_text, where="test")
    types: dict[str, Any] = {
        "event_time": pl.Datetime("us", "UTC"),
        "label": pl.Int8,
        "price": pl.Float64,
        "picture": pl.List(pl.Float32),
    }
    columns = {c: types.get(c, pl.String) for c in (rows[0] if rows else make_rows(num_rows=1)[0])}
    pl.DataFrame(rows, schema=columns).write_parquet(folder / "clean.parquet")
    (folder / "schema.yaml").write_text(schema.to_yaml(), encoding="utf-8")
    return CleanLog(folder, schema, rows)


@pytest.fixture(scope="session")
def clean_log(tmp_path_factory: pytest.TempPathFactory) -> CleanLog:
    return write_clean(tmp_path_factory.mktemp("log") / "clean", SCHEMA, make_rows())


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[[str, list[Row]], CleanLog]:
    """Write a clean log of other rows or another schema below the test's own folder."""
    return lambda schema_text, rows: write_clean(tmp_path / "clean", schema_text, rows)
