"""A user's own log: a small parquet file with a clear pattern, and the schema file that describes it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl

SCHEMA = """\
name: shop
time: {column: shown_at, format: datetime}
label: {column: bought}
entities:
  user: {key: user, column: customer}
  item: {key: item, column: sku, title: product}
fields:
  - {name: color, entity: item, allowed: [red, blue, green]}
  - {name: device, nullable: false}
  - {name: price, kind: numeric, entity: item, minimum: 0}
sequences:
  - {name: bought_before, of: item, length: 5}
vectors:
  - {name: look, dim: 4}
scenario: device
statistics: {windows_days: [7], entities: [item]}
"""


NUM_ODD = 3  # rows of every log whose device is missing, which the schema does not allow


def write_log(folder: Path, *, rows: int = 9000, broken: bool = False) -> tuple[Path, Path]:
    """Write ``log.parquet`` and ``shop.yaml``; red items are bought often, the others rarely. Each item has a picture vector.

    With `broken` most rows hold a label that is none.
    """
    draw = np.random.default_rng(7)
    users, items = draw.integers(0, 60, rows), draw.integers(0, 24, rows)
    label = (draw.random(rows) < np.where(items % 3 == 0, 0.8, 0.15)).astype(np.int64)
    if broken:
        label[draw.random(rows) < 0.9] = 7
    device = draw.choice(["phone", "desktop"], rows).astype(object)
    device[[3, 11, 14]] = None
    looks = draw.normal(size=(24, 4))
    start = datetime(2024, 3, 1, tzinfo=timezone.utc)
    log, schema = folder / "log.parquet", folder / "shop.yaml"
    pl.DataFrame(
        {
            "shown_at": [start + timedelta(minutes=3 * i) for i in range(rows)],
            "bought": label,
            "customer": [f"c{u}" for u in users],
            "sku": [f"s{i}" for i in items],
            "product": [f"Product {i}" for i in items],
            "color": [("red", "blue", "green")[i % 3] for i in items],
            "device": device.tolist(),
            "look": looks[items].tolist(),
            "price": (10.0 + items).tolist(),
        }
    ).write_parquet(log)
    schema.write_text(SCHEMA)
    return log, schema
