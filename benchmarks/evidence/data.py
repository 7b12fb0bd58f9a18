"""The logs of the study, each as one training set per label delay, with the same rows and vocabularies but different
counters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks import quality
from benchmarks.testtime.data import SHIFTING, SIM_SCHEMA, SIM_SPLIT
from thinktwice.data.ingest import ingest, simulate
from thinktwice.data.simulator import SimConfig
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.errors import DataError
from thinktwice.parquet import read_frame
from thinktwice.schema import LogSchema

DELAYS = {"at once": 0, "ten minutes": 600, "a day": 86_400}  # seconds
ML_100K = LogSchema.model_validate(
    quality.SCHEMA.model_dump(mode="json")
    | {
        "name": "ml-100k-evidence",
        "fields": [
            {"name": "gender", "entity": "user", "protected": True},
            {"name": "occupation", "entity": "user", "protected": True},
            {"name": "zip3", "entity": "user"},
            {"name": "year", "entity": "item", "protected": True},
            {"name": "genre", "entity": "item", "protected": True},
            {"name": "hour", "derived": "hour"},
            {"name": "weekday", "derived": "weekday"},
        ],
    }
)


@dataclass(frozen=True)
class DataSet:
    """The source of a log's rows, and their split; ``topics`` and ``attributes`` are crossed with users and items in
    counters."""

    rows: Callable[[Path], pl.DataFrame]
    schema: LogSchema
    split: SplitSpec
    topics: tuple[str, ...]
    attributes: tuple[str, ...]


def _ml_100k(folder: Path) -> pl.DataFrame:
    ingest("ml-100k", None, None, folder / "log")
    at = pl.from_epoch(pl.col("timestamp").cast(pl.Float64).cast(pl.Int64), time_unit="s").dt.replace_time_zone("UTC")
    return read_frame(folder / "log" / "log.parquet").select(
        "row_id",
        at.cast(pl.Datetime("us", "UTC")).alias("event_time"),
        (pl.col("rating").cast(pl.Float64) >= 4).cast(pl.Int8).alias("label"),
        *(pl.col(c).cast(pl.String) for c in ("user_id", "item_id", "gender", "occupation", "zip3")),
        pl.col("year_bucket").cast(pl.String).alias("year"),
        pl.col("main_genre").cast(pl.String).alias("genre"),
        at.dt.hour().cast(pl.String).alias("hour"),
        (at.dt.weekday() - 1).cast(pl.String).alias("weekday"),
    )


def _users(rows: Callable[[Path], pl.DataFrame], users: int) -> Callable[[Path], pl.DataFrame]:
    """The rows of the ``users`` users with the lowest hashes."""

    def subset(folder: Path) -> pl.DataFrame:
        frame = rows(folder)
        chosen = frame.select(pl.col("user_id").unique()).sort(pl.col("user_id").hash(0), "user_id")["user_id"][:users]
        return frame.filter(pl.col("user_id").is_in(chosen.implode()))

    return subset


def _sim(config: SimConfig) -> Callable[[Path], pl.DataFrame]:
    def rows(folder: Path) -> pl.DataFrame:
        simulate(config, folder / "log")
        frame = read_frame(folder / "log" / "log.parquet")
        at = pl.from_epoch(pl.col("time_us"), time_unit="us").dt.replace_time_zone("UTC")
        ids = ("user_id", "item_id", "city", "author_id", "site_id", "cookie_id", "slot")
        return frame.with_columns(
            at.alias("event_time"),
            pl.col("click").alias("label"),
            pl.col("true_probability").alias("truth"),
            at.dt.hour().cast(pl.String).alias("hour"),
            *(pl.col(c).cast(pl.String) for c in ids),
        )

    return rows


def _movielens(kind: str, users: int | None = None) -> DataSet:
    rows = quality.ten_fields if users is None else _users(quality.ten_fields, users)
    split = SplitSpec.model_validate({"kind": kind})
    return DataSet(rows, quality.SCHEMA, split, ("genre", "year"), ("gender", "age"))


_SMALL = SHIFTING.model_copy(update={"rows": 100_000, "users": 5_000, "items": 2_000})
_SIM_CROSSED = (("author_id", "topic"), ("age_band", "city"))
SETS = {
    "ml-100k by time": DataSet(_ml_100k, ML_100K, SplitSpec(), ("genre", "year"), ("gender", "occupation")),
    "simulator, small": DataSet(_sim(_SMALL), SIM_SCHEMA, SIM_SPLIT, *_SIM_CROSSED),
    "ml-1m by time, 2400 users": _movielens("time", 2400),
    "ml-1m by time": _movielens("time"),
    "ml-1m at random": _movielens("random"),
    "simulator": DataSet(_sim(SHIFTING), SIM_SCHEMA, SIM_SPLIT, *_SIM_CROSSED),
}


def load(name: str, work: Path) -> dict[str, TrainingSet]:
    """The training sets of a log by delay, built under ``work`` if they do not exist."""
    data_set = SETS[name]
    folders = {delay: work / name.replace(" ", "-") / delay.replace(" ", "-") for delay in DELAYS}
    try:
        return {delay: load_training_set(folder) for delay, folder in folders.items()}
    except DataError:
        with tempfile.TemporaryDirectory() as scratch:
            rows = data_set.rows(Path(scratch)).to_arrow()
    for delay, folder in folders.items():
        instant = {
            "feedback_delay": {"click": DELAYS[delay], "no_click": DELAYS[delay]},
            "topics": data_set.topics,
            "attributes": data_set.attributes,
        }
        content = data_set.schema.model_dump(mode="json") | {"statistics": {"instant": instant}}
        build_training_set(rows, LogSchema.model_validate(content), folder, data_set.split)
    return {delay: load_training_set(folder) for delay, folder in folders.items()}
