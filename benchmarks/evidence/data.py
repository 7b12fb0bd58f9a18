"""The logs of the study, each as training sets with the same rows, parts and vocabularies: one per label delay, with counters, and
one with today's default, statistics of whole days. All have the user's latest clicked items.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from benchmarks import quality
from benchmarks.testtime.data import SHIFTING, SIM_SCHEMA, SIM_SPLIT
from thinktwice.data.feature_tables import CLEAN_FILE
from thinktwice.data.ingest import ingest, simulate
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.reading import LOG_FILE
from thinktwice.data.simulator import SimConfig
from thinktwice.data.sources.registry import builtin_schema
from thinktwice.data.splits import PARTS, SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.errors import DataError
from thinktwice.models import DeepFMConfig
from thinktwice.parquet import read_frame, read_table, write_frame, write_table
from thinktwice.schema import EVENT_TIME, ROW_ID, LogSchema
from thinktwice.train.config import FinetuneConfig

DELAYS = {"at once": 0, "ten minutes": 600, "a day": 86_400}  # seconds
DAYS = "statistics of whole days"
PART = "part"  # in-user: the column of the parts
RECENT = {"name": "recent_items", "of": "item_id", "length": 20}
VALID_SHARE, TEST_SHARE = 0.1, 0.2  # of the rows of every user, in-user
ML_SIZES = DeepFMConfig(dim=16, hidden=(128, 64))
SIM_SIZES = DeepFMConfig(dim=8, hidden=(64, 32))


def _training(table_l2: float, epochs: float) -> FinetuneConfig:
    return FinetuneConfig(
        batch_size=1024, rate=4e-3, table_l2=(table_l2,), augmentations=("none",), trial_epochs=epochs, epochs=epochs
    )


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
class Log:
    """A log of the study.

    Attributes:
        words: its name on the page.
        rows: makes its rows in the form of a clean log.
        schema: its fields, without sequences and statistics.
        split: shares and kind. By :data:`PART`: the latest rows of every user are for the test, those before for validation.
        days: windows of the statistics of whole days.
        topics, attributes: crossed with users and items in counters.
        sizes, training: of every trunk. Its table L2 was chosen on validation: for MovieLens-1M by ``make bench-quality``, which
            has the same splits, for the simulator by ``make bench-testtime``.
    """

    words: str
    rows: Callable[[Path], pl.DataFrame]
    schema: LogSchema
    split: SplitSpec
    days: tuple[int, ...]
    topics: tuple[str, ...]
    attributes: tuple[str, ...]
    sizes: DeepFMConfig
    training: FinetuneConfig

    @property
    def blocks(self) -> Literal["time", "random"]:
        """How the train rows are cut into later blocks."""
        return "random" if self.split.kind == "random" else "time"


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


def _movielens(words: str, table_l2: float, split: SplitSpec) -> Log:
    crossed = ("genre", "year"), ("gender", "age")
    schema, training = _plain(builtin_schema("ml-1m")), _training(table_l2, 5.0)
    return Log(words, quality.ten_fields, schema, split, (30, 0), *crossed, ML_SIZES, training)


def _plain(schema: LogSchema) -> LogSchema:
    return schema.model_copy(update={"sequences": (), "statistics": None})


def _simulated(words: str, config: SimConfig) -> Log:
    crossed = ("author_id", "topic"), ("age_band", "city")
    return Log(words, _sim(config), SIM_SCHEMA, SIM_SPLIT, (7, 0), *crossed, SIM_SIZES, _training(1e-3, 4.0))


_SMALL = SHIFTING.model_copy(update={"rows": 60_000, "users": 3_000, "items": 1_500})
_CROSSED_100K = ("genre", "year"), ("gender", "occupation")
LOGS = {
    "ml_time": _movielens("MovieLens-1M by time", 1e-3, SplitSpec()),
    "sim": _simulated("simulator, drifting and reused ids", SHIFTING),
    "ml_user": _movielens("MovieLens-1M, later rows of the same users", 3e-4, SplitSpec(kind="column", column=PART)),
    "ml_random": _movielens("MovieLens-1M at random", 3e-4, SplitSpec(kind="random")),
    "ml_100k": Log(
        "MovieLens-100K by time",
        _ml_100k,
        ML_100K,
        SplitSpec(),
        (30, 0),
        *_CROSSED_100K,
        SIM_SIZES,
        _training(1e-3, 4.0),
    ),
    "sim_small": _simulated("small simulator, drifting and reused ids", _SMALL),
}


def load(name: str, work: Path, variant: str) -> TrainingSet:
    """The training set of a log for a label delay or :data:`DAYS`, built under ``work`` if it does not exist."""
    log, folder = LOGS[name], work / name / "data"
    target = folder / variant.replace(" ", "-")
    try:
        return load_training_set(target)
    except DataError:
        folder.mkdir(parents=True, exist_ok=True)
    days = {"windows_days": log.days}
    rows = folder / "rows.parquet"
    if not rows.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            write_frame(log.rows(Path(scratch)).sort(EVENT_TIME, ROW_ID), Path(scratch) / CLEAN_FILE)
            write_table(training_rows(scratch, _with(log.schema, days)), rows)
    if log.split.column == PART:
        frame = read_frame(rows, [ROW_ID, "user_id", EVENT_TIME])
        parts = in_user_parts(frame["user_id"].to_numpy(), frame[EVENT_TIME].dt.epoch("us").to_numpy())
        write_frame(frame.select(ROW_ID, pl.Series(PART, np.asarray(PARTS)[parts])), folder / LOG_FILE)
    seconds = DELAYS.get(variant, 0)
    crossed = {"topics": log.topics, "attributes": log.attributes}
    instant = {"instant": {"feedback_delay": {"click": seconds, "no_click": seconds}} | crossed}
    schema = _with(log.schema, days if variant == DAYS else instant)
    build_training_set(read_table(rows), schema, target, log.split, folder)
    return load_training_set(target)


def in_user_parts(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Part [R] of every row: the latest fifth of each user's rows is test, the tenth before is validation. All rows of an
    instant are in the later part."""
    order = np.lexsort((time, user))
    fresh = np.r_[True, user[order][1:] != user[order][:-1]]
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.r_[starts, len(user)])
    number = np.cumsum(fresh) - 1
    codes = np.zeros(len(user), np.int8)
    for part, share in ((1, VALID_SHARE + TEST_SHARE), (2, TEST_SHARE)):
        first = time[order][starts + np.minimum((sizes * (1 - share)).astype(np.int64), sizes - 1)]
        codes[order[time[order] >= first[number]]] = part
    return codes


def _with(schema: LogSchema, statistics: dict[str, Any]) -> LogSchema:
    content = schema.model_dump(mode="json") | {"sequences": [RECENT], "statistics": statistics}
    return LogSchema.model_validate(content)
