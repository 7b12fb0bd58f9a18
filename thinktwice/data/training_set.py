"""The training set: clean rows with their point-in-time features, split, and encoded by an encoder fitted on train alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.encoder import Encoder
from thinktwice.data.evidence import Evidence, History
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.data.instant.recent import recent_outcomes
from thinktwice.data.instant.stored import CounterScale, read_counters, write_counters
from thinktwice.data.splits import PARTS, SplitSpec, assign_split, given_parts
from thinktwice.data.training_set_info import INFO_FILE, Conservation, PartInfo, PartName, TrainingSetInfo
from thinktwice.data.warm_start import START_FOLDER, Start
from thinktwice.errors import DataError, RowsLostError
from thinktwice.files import atomic_dir, sha256_file, sha256_text
from thinktwice.parquet import read_frame, write_frame
from thinktwice.progress import tell
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID, SCHEMA_FILE, LogSchema, load_schema
from thinktwice.versioned import read_result

ROWS_FILE = "rows.parquet"
ENTITIES: tuple[Literal["user", "item"], ...] = ("user", "item")


@dataclass(frozen=True)
class TrainingSet:
    """An open training set on disk. Parts are loaded on demand."""

    folder: Path
    schema: LogSchema
    encoder: Encoder
    info: TrainingSetInfo

    def part(self, name: str) -> EncodedRows:
        """Encoded rows of ``train``, ``valid`` or ``test``, in the order of :meth:`rows`."""
        return EncodedRows.load(self.folder / f"{name}.safetensors")

    def rows(self, part: str) -> pl.DataFrame:
        """The clean rows of one part with all their columns."""
        return read_frame(self.folder / ROWS_FILE).filter(pl.col("split") == part)

    def counters(self, part: PartName) -> np.ndarray | None:
        """Instant statistics of one part in the order of :meth:`rows`, float32 [R, C], NaN for unknown; a read-only memory map.

        None for a schema without ``statistics.instant``. :attr:`counter_scale` standardises them.
        """
        if self.counter_scale is None:
            return None
        rows = self.info.parts[part].rows
        return read_counters(self.folder, part, rows, len(self.counter_scale.names))

    def part_with_evidence(self, name: PartName) -> EncodedRows:
        """Like :meth:`part`, with counters and user histories if the schema has ``statistics.instant``."""
        rows, counters = self.part(name), self.counters(name)
        if counters is None:
            return rows
        return replace(rows, evidence=Evidence(counters, lambda: self._histories[name]))

    def late_counters(self, late_us: int, wanted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Counters [n, C] of some rows of each part, at positions [n], as if every outcome were known ``late_us`` later."""
        definition = definition_of(self.schema)
        assert definition is not None
        late = replace(
            definition,
            click_delay=definition.click_delay + late_us,
            no_click_delay=definition.no_click_delay + late_us,
        )
        path = self.folder / ROWS_FILE
        split = read_frame(path, ["split"])["split"].to_numpy()
        rows_by_part = {part: np.flatnonzero(split == part)[positions] for part, positions in wanted.items()}
        counters = {part: np.empty((len(rows), len(late.names)), np.float32) for part, rows in rows_by_part.items()}
        start = 0
        with tempfile.TemporaryDirectory() as scratch:
            for block in log_counters(log_rows(lambda name: read_frame(path, [name])[name], late), late, Path(scratch)):
                for part, rows in rows_by_part.items():
                    inside = (rows >= start) & (rows < start + len(block))
                    counters[part][inside] = block[rows[inside] - start]
                start += len(block)
        return counters

    @cached_property
    def _histories(self) -> dict[str, History]:
        """The latest outcomes of the users of all rows, by part."""
        definition = definition_of(self.schema)
        assert definition is not None
        path = self.folder / ROWS_FILE
        log = log_rows(lambda name: read_frame(path, [name])[name], definition)
        recent = recent_outcomes(log, definition)
        items = np.zeros(len(log), np.int32)
        split = read_frame(path, ["split"])["split"].to_numpy()
        column = self.encoder.column_of(definition.item)
        for name in PARTS if column is not None else ():
            items[split == name] = self.part(name).ids[:, column]
        items, clicked = items[recent.outcomes], log.clicked[recent.outcomes]
        return {name: History(items, clicked, recent.start[split == name], recent.end[split == name]) for name in PARTS}

    @cached_property
    def counter_scale(self) -> CounterScale | None:
        """Names, means and spreads of the instant statistics.

        Raises:
            DataError: they were computed by a different definition from that of the schema in this version.
        """
        definition = definition_of(self.schema)
        if definition is None:
            return None
        scale = CounterScale.load(self.folder)
        if scale.definition != definition.hash:
            raise DataError(
                f"the instant statistics of training set {self.folder} are of another version: rebuild the training set"
            )
        return scale

    @property
    def start(self) -> Path | None:
        """Folder of the earlier model that training continues; None for training from scratch."""
        folder = self.folder / START_FOLDER
        return folder if folder.is_dir() else None

    @property
    def continued(self) -> str:
        """Hash of the files of that model; "" without one."""
        return "" if self.start is None else sha256_text(*(sha256_file(p) for p in sorted(self.start.iterdir())))

    @cached_property
    def train_window(self) -> tuple[str, str]:
        """First and last instant of the train part, ISO 8601 UTC."""
        return self.info.parts["train"].window


def build_training_set(
    table: pa.Table,
    schema: LogSchema,
    out_dir: Path | str,
    split: SplitSpec,
    log_dir: Path | str | None = None,
    start: Start | None = None,
) -> TrainingSetInfo:
    """Split, fit the encoder on train, encode all parts and write the folder; returns the content of its info file.

    ``log_dir`` is the raw log folder of the rows; only a split by column reads it. ``start`` is an earlier model of the same fields:
    the encoder continues its own, and training its weights.

    Raises:
        DataError: a part is empty or train has one class only; a split by column has no or a wrong value in a row.
        RowsLostError: the parts do not add up to ``table``.
    """
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    missing = [f.name for f in schema.row_fields() if f.name not in frame.columns]
    if missing:
        raise DataError(
            f"training rows lack the columns {', '.join(missing)}: materialize the features of this schema first"
        )
    given = None
    if split.column is not None:
        if log_dir is None:
            raise DataError(
                f"a split by column {split.column!r} reads the raw log: give the folder that the log was ingested into"
            )
        given = given_parts(Path(log_dir), split.column, frame[ROW_ID])
    times = frame[EVENT_TIME].dt.epoch("us").to_numpy()
    codes = assign_split(times, frame[ROW_ID].to_numpy(), split, schema.zone, given)
    frame = frame.with_columns(pl.Series("split", np.asarray(PARTS)[codes])).sort(EVENT_TIME, ROW_ID)
    _check_parts(frame, split)
    train = frame.filter(pl.col("split") == "train")
    encoder = Encoder.fit(train.to_arrow(), schema, None if start is None else start.encoder())
    parts: dict[PartName, PartInfo] = {}
    with atomic_dir(out_dir) as folder:
        (folder / SCHEMA_FILE).write_text(schema.to_yaml(), encoding="utf-8")
        encoder.save(folder)
        for part in PARTS:
            rows = frame.filter(pl.col("split") == part)
            encoder.encode_table(rows.to_arrow()).save(folder / f"{part}.safetensors")
            parts[part] = _describe(rows, train, schema)
        definition = definition_of(schema)
        if definition is not None:
            write_counters(frame, definition, folder, {part: parts[part].rows for part in PARTS})
        info = TrainingSetInfo(
            format=TrainingSetInfo.FORMAT,
            schema_name=schema.name,
            split=split,
            rows=frame.height,
            parts=parts,
            conservation=_conservation(frame, table.num_rows),
            cut=encoder.cut,
        )
        write_frame(frame, folder / ROWS_FILE)
        if start is not None:
            start.copy(folder / START_FOLDER)
        info.write(folder / INFO_FILE)
    for name, of in info.cut.items():
        tell(
            "build_training_set",
            f"{name}: {of.kept:,} of {of.kept + of.cut:,} values are in the vocabulary; the others, {of.share:.1%} of its training "
            "values, count as unknown",
        )
    return info


def load_training_set(folder: Path | str) -> TrainingSet:
    """Open a training set folder.

    Raises:
        DataError: it is not a training set, or is incomplete.
    """
    folder = Path(folder)
    if not (folder / INFO_FILE).is_file():
        raise DataError(
            f"{folder} is not a training set (no {INFO_FILE}): give the folder that build_training_set wrote"
        )
    info = read_result(folder / INFO_FILE, TrainingSetInfo, DataError, "build the training set again")
    return TrainingSet(folder, load_schema(folder / SCHEMA_FILE), Encoder.load(folder), info)


def _check_parts(frame: pl.DataFrame, split: SplitSpec) -> None:
    sizes = dict(frame.group_by("split").len().iter_rows())
    empty = [p for p in PARTS if not sizes.get(p)]
    if empty:
        times = frame[EVENT_TIME]
        window = f"the rows are of {_iso(times.min())[:10]} to {_iso(times.max())[:10]}"
        fix = {
            "time": "give a log of more different times, or split it with --split random",
            "random": "give a log of more rows",
            "days": f"{window}; give a longer log, or a smaller number of days",
            "dates": f"{window}; choose dates within them",
            "column": f"write all three parts into column {split.column!r}, or choose another split",
        }
        raise DataError(
            f"the {split.kind} split of {frame.height:,} rows leaves no rows for {', '.join(empty)}: {fix[split.kind]}"
        )
    labels = frame.filter(pl.col("split") == "train")[LABEL]
    if labels.n_unique() < 2:
        alternative = (
            ", or split it with --split random" if split.kind != "random" and frame[LABEL].n_unique() > 1 else ""
        )
        raise DataError(
            f"all {len(labels):,} training rows have the same label ({labels[0]}), and a click model needs clicks and "
            f"non-clicks: give a longer log{alternative}"
        )


def _describe(rows: pl.DataFrame, train: pl.DataFrame, schema: LogSchema) -> PartInfo:
    """Size, window, click rate and novelty (share of rows with an entity unseen in train, and without a user) of one part."""
    times = rows[EVENT_TIME]
    novelty: dict[str, float] = {}
    for entity in ENTITIES:
        key = schema.key_of(entity)
        if key is not None:
            unseen = ~rows[key].drop_nulls().is_in(train[key].drop_nulls().unique().implode())
            novelty[entity] = float(unseen.sum()) / rows.height
    anonymous = rows[str(schema.key_of("user"))].null_count() / rows.height if schema.has_anonymous_users else None
    return PartInfo(
        rows=rows.height,
        click_rate=float(rows[LABEL].to_numpy().mean()),
        window=(_iso(times.min()), _iso(times.max())),
        unseen_share=novelty,
        anonymous_share=anonymous,
    )


def _conservation(frame: pl.DataFrame, rows_in: int) -> Conservation:
    unique = frame[ROW_ID].n_unique()
    if frame.height != rows_in or unique != rows_in:
        raise RowsLostError(f"{rows_in} rows went into the split, {frame.height} came out with {unique} different ids")
    return Conservation(rows_in=rows_in, rows_out=frame.height, unique_row_ids=unique)


def _iso(value: Any) -> str:
    return value.isoformat() if value is not None else ""
