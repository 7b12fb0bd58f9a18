"""A small shop log with tables of users and items."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl

from thinktwice.data.ingest import ingest
from thinktwice.validate.split import SplitResult, split_log

SCHEMA = """\
name: shop
time: {column: at, format: datetime}
label: {column: bought}
entities: {user: {key: user}, item: {key: item, title: name}}
TABLES
fields:
- {name: device}
- {name: gender, entity: user}
- {name: color, entity: item, allowed: [red, blue]}
- {name: price, entity: item, kind: numeric, minimum: 0}
sequences:
- {name: recent_colors, of: color, length: 3}
vectors:
- {name: look, dim: 2}
"""
TABLES = "tables: {users: {path: users.csv}, items: {path: items.parquet}}"
START = datetime(2024, 3, 1, tzinfo=timezone.utc)
Row = dict[str, Any]


def impressions(rows: int = 60) -> list[Row]:
    return [
        {
            "at": (START + timedelta(hours=n)).isoformat(),
            "bought": n * n % 3 % 2,
            "user": f"u{n % 5}",
            "item": n * 7 % 11,
            "device": "ab"[n % 2],
        }
        for n in range(rows)
    ]


def users() -> list[Row]:
    return [{"user": f"u{n}", "gender": "fm"[n % 2]} for n in range(5)]


def items() -> list[Row]:
    return [
        {"item": n, "name": f"No. {n}", "color": ("red", "blue")[n % 2], "price": n / 4, "look": [float(n), 1.5]}
        for n in range(11)
    ]


def written(folder: Path, rows: list[Row], name: str) -> Path:
    frame = pl.DataFrame(rows, infer_schema_length=None)
    path = folder / name
    if name.endswith(".csv"):
        lists = [c for c, kind in frame.schema.items() if isinstance(kind, pl.List)]
        texts = [
            pl.format("[{}]", pl.col(c).list.eval(pl.element().cast(pl.String)).list.join(",")).alias(c) for c in lists
        ]
        frame.with_columns(texts).write_csv(path)
    elif name.endswith(".jsonl"):
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)
    return path


def prepared(
    folder: Path, log: list[Row], of_users: list[Row], of_items: list[Row], tables: str = TABLES, schema: str = SCHEMA
) -> tuple[Path, SplitResult]:
    """The folder of a clean log, and its split."""
    folder.mkdir(exist_ok=True)
    path = written(folder, log, "log.csv")
    written(folder, of_users, "users.csv")
    written(folder, of_items, "items.parquet")
    (folder / "s.yaml").write_text(schema.replace("TABLES", tables))
    ingest("log", path, folder / "s.yaml", folder / "raw")
    return folder / "clean", split_log(folder / "raw", folder / "clean", folder / "quarantine", run_id="test")


def repeated(log: list[Row], of_users: list[Row], of_items: list[Row]) -> list[Row]:
    """The log with the attributes in every row."""
    by_user, by_item = {r["user"]: r for r in of_users}, {r["item"]: r for r in of_items}
    names = ("gender", "name", "color", "price", "look")
    return [
        {**row, **{n: {**by_user.get(row["user"], {}), **by_item.get(row["item"], {})}.get(n) for n in names}}
        for row in log
    ]
