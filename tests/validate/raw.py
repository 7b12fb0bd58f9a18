"""Writes raw log folders as ingest does, and the one small log that most tests of the room break on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

START = 1_700_000_000  # 2023-11-14 22:13:20 UTC

SHOP = """
name: shop
time: {column: ts, format: s}
label: {column: clicked}
entities:
  user: {key: user_id, column: uid}
  item: {key: item_id, column: iid, title: name}
fields:
- {name: device, entity: context, allowed: [phone, desk], nullable: false}
- {name: price, entity: item, kind: numeric, minimum: 0, maximum: 100}
- {name: hour, derived: hour}
- {name: weekday, derived: weekday}
vectors:
- {name: image, dim: 2}
"""


def shop_columns(num_rows: int) -> dict[str, list[Any]]:
    """A clean log; texts where a log has texts, so that tests can break any value."""
    return {
        "uid": [f"u{i % 7}" for i in range(num_rows)],
        "iid": [i % 5 for i in range(num_rows)],
        "name": [f"Thing {i % 5}" for i in range(num_rows)],
        "ts": [str(START + 60 * ((i * 37) % num_rows)) for i in range(num_rows)],
        "clicked": [str(int(i % 3 == 0)) for i in range(num_rows)],
        "device": [("phone", "desk")[i % 2] for i in range(num_rows)],
        "price": [f"{(i * 7) % 90}.5" for i in range(num_rows)],
        "image": [[float(i % 5), 1.0] for i in range(num_rows)],
        "unread": [i for i in range(num_rows)],  # no field of the schema, kept in the quarantine
    }


def row_id(row: int) -> str:
    return f"{(row * 0x9E3779B97F4A7C15 + 0x1234) % 2**64:016x}"


def write_raw(
    folder: Path, columns: dict[str, Any] | pl.DataFrame, schema: str = SHOP, unparsable: tuple[str, ...] = ()
) -> Path:
    """Write a raw log folder; unparsable records come after the rows in source order."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = columns if isinstance(columns, pl.DataFrame) else pl.DataFrame(columns, strict=False)
    ids = [row_id(i) for i in range(frame.height)]
    log = pl.DataFrame(
        {"row_id": ids, "source_row": range(frame.height)}, schema={"row_id": pl.String, "source_row": pl.Int64}
    )
    log.hstack(frame).write_parquet(folder / "log.parquet")
    places = range(frame.height, frame.height + len(unparsable))
    broken = {"row_id": [row_id(i) for i in places], "source_row": list(places), "raw": list(unparsable)}
    kinds = pa.schema(
        [("row_id", pa.string()), ("source_row", pa.int64()), ("raw", pa.string()), ("error", pa.string())]
    )
    table = pa.table({**broken, "error": ["too few columns"] * len(unparsable)}, schema=kinds)
    pq.write_table(table, folder / "unparsable.parquet")
    (folder / "schema.yaml").write_text(schema, encoding="utf-8")
    snapshot = {"snapshot_id": "0123456789abcdef", "rows": frame.height, "source": "test"}
    (folder / "snapshot.json").write_text(json.dumps(snapshot), encoding="utf-8")
    return folder


def broken_shop(num_rows: int = 400) -> tuple[dict[str, list[Any]], dict[str, list[int]]]:
    """A log with every kind of broken row, and for every rule the rows that break it."""
    columns = shop_columns(num_rows)
    wrong: dict[str, list[int]] = {}

    def spoil(rule: str, column: str, values: dict[int, Any], *also: str) -> None:
        for row, value in values.items():
            columns[column][row] = value
        wrong.setdefault(rule, []).extend(values)
        for other in also:
            wrong.setdefault(other, []).extend(values)

    spoil("user_id:missing", "uid", {3: None, 4: ""})
    columns["iid"] = [str(item) for item in columns["iid"]]
    spoil("item_id:missing", "iid", {5: None})
    spoil("user_id:text", "uid", {26: "u" * 513, 27: "u\x001"})
    spoil("item_id:text", "iid", {28: "7" * 513})
    spoil("device:text", "device", {29: "phone" * 103}, "device:allowed")
    spoil("time:parsable", "ts", {6: "yesterday", 7: None, 8: "nan"})
    spoil("time:window", "ts", {9: str(START * 1000), 10: "-5"})
    spoil("time:future", "ts", {11: str(START + 40 * 86_400)})
    spoil("label:missing", "clicked", {12: None})
    spoil("label:number", "clicked", {13: "yes"})
    spoil("label:binary", "clicked", {14: "2", 15: "0.5"})
    spoil("device:allowed", "device", {16: "fridge"})
    spoil("device:missing", "device", {17: None})
    spoil("price:number", "price", {18: "free", 19: "inf", 20: "1_000"})
    spoil("price:minimum", "price", {21: "-0.01"})
    spoil("price:maximum", "price", {22: "100.5", 14: "1e9"})  # row 14 breaks two rules
    spoil("image:vector", "image", {23: [1.0], 24: [1.0, float("nan")], 25: [1.0, 2.0, 3.0]})
    for copy, first in ((50, 40), (60, 40), (61, 41)):
        for name in columns:
            columns[name][copy] = columns[name][first]
        wrong.setdefault("row:duplicate", []).append(copy)
    return columns, {rule: sorted(rows) for rule, rows in wrong.items()}
