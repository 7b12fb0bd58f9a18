"""The logs of the study, each built once into a training set, and as parquet files of encoded values for the peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import quality
from benchmarks.evidence.data import LOGS as EVIDENCE
from benchmarks.evidence.data import ML_100K, RECENT
from benchmarks.testtime.data import SIM_SCHEMA, SIM_SPLIT
from thinktwice.data.feature_tables import CLEAN_FILE
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.splits import PARTS, SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.errors import DataError
from thinktwice.files import atomic_dir, write_json
from thinktwice.parquet import write_frame
from thinktwice.schema import EVENT_TIME, ROW_ID, LogSchema

LABEL = "label"
SIZES = "sizes.json"


@dataclass(frozen=True)
class Log:
    """``rows`` makes the rows of a clean log; ``schema`` and ``split`` say what becomes of them."""

    words: str
    rows: Callable[[Path], pl.DataFrame]
    schema: LogSchema
    split: SplitSpec


def _with_sequence(schema: LogSchema) -> LogSchema:
    return LogSchema.model_validate(schema.model_dump(mode="json") | {"sequences": [RECENT]})


_BY_TIME, _RANDOM = SplitSpec(), SplitSpec(kind="random")
LOGS = {
    "ml_time": Log("MovieLens-1M by time", quality.ten_fields, quality.SCHEMA, _BY_TIME),
    "ml_random": Log("MovieLens-1M at random", quality.ten_fields, quality.SCHEMA, _RANDOM),
    "ml_100k_time": Log("MovieLens-100K by time", EVIDENCE["ml_100k"].rows, ML_100K, _BY_TIME),
    "ml_100k_random": Log("MovieLens-100K at random", EVIDENCE["ml_100k"].rows, ML_100K, _RANDOM),
    "ml_100k_recent": Log(
        "MovieLens-100K by time, with the latest clicked items",
        EVIDENCE["ml_100k"].rows,
        _with_sequence(ML_100K),
        _BY_TIME,
    ),
    "sim": Log("simulator, drifting and reused ids", EVIDENCE["sim"].rows, SIM_SCHEMA, SIM_SPLIT),
    "sim_small": Log("small simulator, drifting and reused ids", EVIDENCE["sim_small"].rows, SIM_SCHEMA, SIM_SPLIT),
}


def load(name: str, work: Path) -> TrainingSet:
    """The training set of a log, built under ``work`` if it is not there."""
    log, folder = LOGS[name], work / "data" / name
    try:
        return load_training_set(folder)
    except DataError:
        with tempfile.TemporaryDirectory() as scratch:
            write_frame(log.rows(Path(scratch)).sort(EVENT_TIME, ROW_ID), Path(scratch) / CLEAN_FILE)
            build_training_set(training_rows(scratch, log.schema), log.schema, folder, log.split)
        return load_training_set(folder)


def exported(name: str, work: Path) -> Path:
    """Folder with the encoded values of a log as the peers read them: ``PART.parquet`` with one int64 column per field and the
    label, and ``sizes.json`` with the number of values of every field, the unknown value 0 included."""
    folder = work / "exported" / name
    if not folder.is_dir():
        data = load(name, work)
        columns = [column.name for column in data.encoder.columns]
        with atomic_dir(folder) as made:
            for part in PARTS:
                rows = data.part(part)
                values = {column: rows.ids[:, c].astype(np.int64) for c, column in enumerate(columns)}
                write_frame(pl.DataFrame(values | {LABEL: rows.label}), made / f"{part}.parquet")
            write_json(made / SIZES, dict(zip(columns, data.encoder.num_values, strict=True)))
    return folder
