"""The data sets of the study, each built once into a training set folder without a feature store.

``sim_*`` are simulated logs with the true probability of every row: ids with strong and with weak effects, ids whose effects
drift and which are reused, and a new draw of the first to confirm findings. They show items at random, so that the count of a
value carries no information about its clicks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks import quality
from thinktwice.data.ingest import simulate
from thinktwice.data.simulator import SimConfig
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.errors import DataError
from thinktwice.parquet import read_frame
from thinktwice.schema import parse_schema

SIM_SCHEMA = parse_schema(
    """
    name: sim-testtime
    time: {column: time_us, format: us}
    label: {column: click}
    entities: {user: {key: user_id}, item: {key: item_id}}
    fields:
      - {name: age_band, entity: user, protected: true}
      - {name: city, entity: user}
      - {name: author_id, entity: item}
      - {name: topic, entity: item, protected: true}
      - {name: price, entity: item, kind: numeric, minimum: 0, buckets: 16}
      - {name: site_id}
      - {name: cookie_id}
      - {name: device, protected: true}
      - {name: slot, protected: true}
      - {name: scenario, protected: true}
      - {name: load_ms, kind: numeric, minimum: 0, buckets: 16}
      - {name: hour, derived: hour}
    scenario: scenario
    truth: true_probability
    """,
    where="benchmarks/testtime/data.py",
)
SIM_SPLIT = SplitSpec(valid=0.12, test=0.14)
AD_SPLIT = SplitSpec(kind="random", valid=0.25, test=0.25)


@dataclass(frozen=True)
class DataSet:
    """One data set: how to build it, and whether its rows come in time order (train, then validation, then test)."""

    name: str
    words: str
    build: Callable[[Path], None]
    by_time: bool = True


def _sim(config: SimConfig) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            simulate(config, Path(folder) / "log")
            rows = read_frame(Path(folder) / "log" / "log.parquet")
        at = pl.from_epoch(pl.col("time_us"), time_unit="us").dt.replace_time_zone("UTC")
        ids = ("user_id", "item_id", "city", "author_id", "site_id", "cookie_id", "slot")
        rows = rows.with_columns(
            at.alias("event_time"),
            pl.col("click").alias("label"),
            pl.col("true_probability").alias("truth"),
            at.dt.hour().cast(pl.String).alias("hour"),
            *(pl.col(c).cast(pl.String) for c in ids),
        )
        build_training_set(rows.to_arrow(), SIM_SCHEMA, out, SIM_SPLIT)

    return build


def _movielens(kind: str) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            rows = quality.ten_fields(Path(folder)).to_arrow()
        build_training_set(rows, quality.SCHEMA, out, SplitSpec.model_validate({"kind": kind}))

    return build


STRONG = SimConfig(rows=320_000, users=30_000, items=9_000, sharpness=0.0, id_variance=1.2)
QUICK = STRONG.model_copy(update={"rows": 60_000, "users": 6_000, "items": 2_000})
WEAK = STRONG.model_copy(update={"id_variance": 0.12, "seed": 1})
SHIFTING = STRONG.model_copy(update={"drift": 1.0, "reuse": 0.3, "seed": 2})
FRESH = STRONG.model_copy(update={"seed": 3})

SETS = {
    d.name: d
    for d in (
        DataSet("sim_strong", "simulator, strong identity effects", _sim(STRONG)),
        DataSet("sim_weak", "simulator, weak identity effects", _sim(WEAK)),
        DataSet("sim_shift", "simulator, drifting and reused ids", _sim(SHIFTING)),
        DataSet("sim_fresh", "simulator, strong identity effects, fresh draw", _sim(FRESH)),
        DataSet("sim_quick", "simulator, strong identity effects, small", _sim(QUICK)),
        DataSet("ml_time", "MovieLens-1M by time", _movielens("time")),
        DataSet("ml_random", "MovieLens-1M at random", _movielens("random"), by_time=False),
    )
}


def load(name: str, work: Path) -> TrainingSet:
    """The training set of a data set, built under ``work`` if it does not exist."""
    folder = work / name / "data"
    try:
        return load_training_set(folder)
    except DataError:
        SETS[name].build(folder)
        return load_training_set(folder)
