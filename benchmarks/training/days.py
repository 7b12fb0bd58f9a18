"""Ten days in a row: the model of each day continues that of the day before, or is trained anew on all rows so far.

The latest rows of a log are cut into pieces of equal size, called days here. The first model knows the rows before them. At the end of a
day the model is trained, and the rows of the next day are its test. Both sides validate on the last fifth of the day; one trains on
what came since it was trained last, the other on everything before. CPU time is that of building the training set and training.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from benchmarks.training import data
from benchmarks.training.pretraining import calibrated
from benchmarks.training.units import Arrays, Unit, code_of
from thinktwice import recipes
from thinktwice.choices import RecipeName
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.encoder import ENCODER_FILE, VOCABULARY_FILE
from thinktwice.data.feature_tables import CLEAN_FILE
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.reading import LOG_FILE
from thinktwice.data.splits import PARTS, SplitSpec
from thinktwice.data.training_set import TrainingSet, build_training_set, load_training_set
from thinktwice.data.warm_start import Start
from thinktwice.models.store import MODEL_FILES, load_model
from thinktwice.parquet import read_frame, write_frame, write_table
from thinktwice.schema import EVENT_TIME, ROW_ID
from thinktwice.train.finetune import finetune
from thinktwice.train.loader import BlockLoader

Side = Literal["continued", "anew"]
SIDES: tuple[Side, ...] = ("continued", "anew")
BEFORE, VALID = 0.78, 0.2  # share of the rows that the first model knows; share of a day's rows for validation
PART = "part"
RECIPE: RecipeName = "default"
CODE = code_of(
    "benchmarks/training/days.py",
    "benchmarks/training/data.py",
    "thinktwice/data/encoder.py",
    "thinktwice/data/vocabulary.py",
    "thinktwice/models/deepfm.py",
    "thinktwice/models/embedding.py",
    "thinktwice/recipes/named.py",
    "thinktwice/train",
)


@dataclass(frozen=True)
class Days:
    """``days`` trainings of one side, on one log with one seed, by the recipe ``default``."""

    log: str
    side: Side
    seed: int = 0
    days: int = 10

    def unit(self, work: Path) -> Unit:
        """Its unit of work."""
        return Unit(f"days {self.log} {self.side} {self.days} seed {self.seed}", CODE, lambda: self.compute(work))

    def compute(self, work: Path) -> Arrays:
        """``label``, ``user`` and ``day`` of the test rows in order, their calibrated logits ``test``, those of the ``first`` model,
        which is never trained again, and ``cpu_s`` of each day."""
        rows = _rows(self.log, work)
        ends = np.linspace(BEFORE * len(rows), len(rows), self.days + 2).astype(int)
        size = ends[1] - ends[0]
        tested, logits, first, spent = [], [], [], []
        recipe = recipes.get(RECIPE)
        with tempfile.TemporaryDirectory() as scratch:
            begin, start, original = 0, None, None
            for day, end in enumerate(ends[:-1]):
                before, folder = time.process_time(), Path(scratch) / f"{day}"
                valid = end - int(VALID * size)
                built = _build(rows, self.log, (begin, valid, end, ends[day + 1]), folder, start)
                finetune(built.folder, folder / "model", recipe.model, recipe.finetune, seed=self.seed)
                spent.append(time.process_time() - before)
                now = _start(built.folder, folder / "model", folder / "start")
                original = original or now
                if day > 0:
                    test = original.encoder().encode_table(rows[end : ends[day + 1]].to_arrow())
                    first.append(_logits(original.folder, test))
                    tested.append(built.part("test"))
                    logits.append(_logits(now.folder, tested[-1]))
                if self.side == "continued":
                    begin, start = valid, now
        return {
            "label": np.concatenate([test.label for test in tested]),
            "user": np.concatenate([test.user for test in tested]),
            "day": np.repeat(np.arange(self.days), [len(test) for test in tested]),
            "test": np.concatenate(logits),
            "first": np.concatenate(first),
            "cpu_s": np.array(spent[1:]),
        }


def _logits(folder: Path, rows: EncodedRows) -> np.ndarray:
    model, info = load_model(folder)
    return calibrated(model, info.calibration, BlockLoader(rows))


def _rows(name: str, work: Path) -> pl.DataFrame:
    """All training rows of a log in order of time, made once."""
    path, log = work / "days" / f"{name}.parquet", data.LOGS[name]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            write_frame(log.rows(Path(scratch)).sort(EVENT_TIME, ROW_ID), Path(scratch) / CLEAN_FILE)
            write_table(training_rows(scratch, log.schema), path)
    return read_frame(path).sort(EVENT_TIME, ROW_ID)


def _build(
    rows: pl.DataFrame, name: str, bounds: tuple[int, int, int, int], folder: Path, start: Start | None
) -> TrainingSet:
    """The training set of consecutive rows: begin of train, of validation and of test, and the end."""
    begin, *_, end = bounds
    frame = rows[begin:end]
    folder.mkdir()
    parts = np.repeat(np.asarray(PARTS), np.diff(bounds))
    write_frame(frame.select(ROW_ID, pl.Series(PART, parts)), folder / LOG_FILE)
    split = SplitSpec(kind="column", column=PART)
    build_training_set(frame.to_arrow(), data.LOGS[name].schema, folder / "set", split, folder, start)
    return load_training_set(folder / "set")


def _start(training_set: Path, model: Path, folder: Path) -> Start:
    """A model as the start of the next training."""
    folder.mkdir()
    encoder = (ENCODER_FILE, VOCABULARY_FILE)
    for source, names in ((training_set, encoder), (model, MODEL_FILES)):
        for name in names:
            shutil.copyfile(source / name, folder / name)
    return Start(folder, (*encoder, *MODEL_FILES))
