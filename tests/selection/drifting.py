"""A log whose items change their appeal and whose users have tastes that no field shows; and models of it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.models.config import DeepFMConfig
from thinktwice.schema import parse_schema
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune

SCHEMA = """
name: drifting
time: {column: event_time, format: us}
label: {column: label}
entities:
  user: {key: user_id}
  item: {key: item_id}
fields:
  - {name: topic, entity: item}
  - {name: city, entity: user}
statistics: {instant: {feedback_delay: 1m, last: [3, 20], windows: [day]}}
"""
PLAIN = SCHEMA[: SCHEMA.index("statistics")]
FINETUNE = FinetuneConfig(batch_size=256, table_l2=(3e-3,), augmentations=("none",), epochs=2.0)


def log(
    rows: int = 12_000, users: int = 300, items: int = 80, *, drift: float = 1.6, taste: float = 1.2
) -> pl.DataFrame:
    """Clean rows in time order. ``drift``: how far an item's appeal moves; ``taste``: how far users differ in what they like."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, users, rows)
    item = np.minimum((items * rng.random(rows) ** 1.5).astype(int), items - 1)
    phase, speed = rng.random(items) * 2 * np.pi, rng.uniform(6, 14, items)
    appeal = drift * np.sin(phase[item] + speed[item] * np.arange(rows) / rows)
    likes, kind = rng.normal(0, 1, (users, 2)), rng.normal(0, 1, (items, 2))
    logit = appeal + taste * (likes[user] * kind[item]).sum(axis=1) / np.sqrt(2) - 0.3
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    start = dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)
    return pl.DataFrame(
        {
            "row_id": [f"{i:016x}" for i in range(rows)],
            "event_time": pl.Series(
                [start + dt.timedelta(minutes=3 * i) for i in range(rows)], dtype=pl.Datetime("us", "UTC")
            ),
            "label": label,
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"i{i}" for i in item],
            "topic": [f"t{i % 5}" for i in item],
            "city": [f"c{u % 3}" for u in user],
        }
    )


def training_set(folder: Path, frame: pl.DataFrame, schema: str = SCHEMA, *, kind: str = "time") -> TrainingSet:
    split = SplitSpec.model_validate({"kind": kind, "valid": 0.25, "test": 0.1})
    build_training_set(frame.to_arrow(), parse_schema(schema, where="test"), folder, split)
    return load_training_set(folder)


def train_model(data: TrainingSet, folder: Path) -> Path:
    finetune(data.folder, folder, DeepFMConfig(dim=4, hidden=(16,)), FINETUNE)
    return folder
