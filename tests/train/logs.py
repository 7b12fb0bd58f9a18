"""A small click log as a training set folder, for tests of training."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set
from thinktwice.data.warm_start import Start
from thinktwice.schema import parse_schema

SCHEMA = parse_schema(
    """
    name: small
    time: {column: ts}
    entities: {user: {key: user_id}, item: {key: item_id}}
    fields: [{name: genre, entity: item}, {name: price, kind: numeric, buckets: 8}]
    sequences: [{name: history, of: item_id, length: 4}]
    """,
    where="test",
)
WITH_TAGS = parse_schema(
    SCHEMA.to_yaml().replace("fields:\n", "fields:\n- {name: tags, kind: list, length: 3}\n", 1), where="test"
)


def build_small(
    folder: Path, rows: int = 4000, seed: int = 0, shift: int = 0, tags: bool = False, start: Start | None = None
) -> Path:
    """Write the training set and return its folder.

    ``shift`` makes other users and items of the first ones, ``tags`` adds a list, and ``start`` is an earlier model to continue.
    """
    rng = np.random.default_rng(seed)
    user, item = rng.zipf(1.4, rows) % 60, rng.integers(0, 40, rows)
    genre, price = item % 5, rng.normal(size=rows) + item % 5
    logit = (user % 3 - 1) + 0.8 * (genre - 2) - 0.4 * (price - 2)
    begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
    table = pl.DataFrame(
        {
            "row_id": [f"{i:016x}" for i in range(rows)],
            "event_time": [begin + timedelta(minutes=i) for i in range(rows)],
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
            "user_id": [f"u{u + shift}" for u in user],
            "item_id": [f"i{i + shift}" for i in item],
            "genre": [f"g{g}" for g in genre],
            "price": price,
            "history": [[f"i{i + shift}" for i in rng.integers(0, 40, rng.integers(0, 5))] for _ in range(rows)],
        }
    )
    if tags:
        table = table.with_columns(
            pl.Series("tags", [[f"t{(u + shift) % 40}", f"t{g}"] for u, g in zip(user, genre, strict=True)])
        )
    build_training_set(table.to_arrow(), WITH_TAGS if tags else SCHEMA, folder, SplitSpec(), start=start)
    return folder
