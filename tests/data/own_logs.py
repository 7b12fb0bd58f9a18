"""A small own log with all kinds of columns, and its forms in text."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl

SCHEMA = """\
name: shop
time: {column: at, format: datetime}
label: {column: bought}
entities:
  user: {key: user}
  item: {key: item, title: title}
fields:
  - {name: color, entity: item}
  - {name: device}
  - {name: price, kind: numeric, entity: item, minimum: 0}
vectors:
  - {name: look, dim: 2}
"""


def small_log(rows: int) -> pl.DataFrame:
    draw = np.random.default_rng(3)
    items = draw.integers(0, 20, rows)
    start = datetime(2024, 3, 1, tzinfo=timezone.utc)
    return pl.DataFrame(
        {
            "at": [start + timedelta(minutes=7 * n) for n in range(rows)],
            "bought": draw.integers(0, 2, rows),
            "user": draw.integers(0, 40, rows),
            "item": items,
            "title": [f'No. {i}, "the\nbest"' for i in items],
            "color": [("red", "grün", None)[i % 3] for i in items],
            "device": draw.choice(["phone", "desktop"], rows),
            "price": items / 7 + 0.1,
            "look": [[float(i), i / 3] for i in items],
        }
    )


def as_csv(log: pl.DataFrame, path: Path) -> None:
    vectors = pl.format("[{}]", pl.col("look").list.eval(pl.element().cast(pl.String)).list.join(", ")).alias("look")
    log.with_columns(vectors, pl.col("at").dt.to_string("%Y-%m-%dT%H:%M:%SZ")).write_csv(path)


def as_json_lines(log: pl.DataFrame, path: Path) -> None:
    rows = log.with_columns(pl.col("at").dt.to_string("%Y-%m-%dT%H:%M:%SZ")).to_dicts()
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))
