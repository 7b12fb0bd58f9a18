"""Reading of rows of a raw log or a quarantine: the columns that the schema names, and other columns for selected rows only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from thinktwice.errors import DataError
from thinktwice.parquet import open_parquet
from thinktwice.progress import track
from thinktwice.schema.columns import check_columns, named_columns
from thinktwice.schema.fields import ROW_ID
from thinktwice.schema.log import LogSchema
from thinktwice.validate.column_rules import Rule
from thinktwice.validate.parse import SOURCE_ROW
from thinktwice.validate.rules import noted_rules, row_rules

STAGE = "validate"
CHUNK_BYTES = 96_000_000  # decoded size of one chunk of rows, roughly
CHUNK_ROWS = 400_000


@dataclass(frozen=True)
class RawRows:
    """One parquet file of raw rows, the records that never became rows, and how to read them."""

    log: Path
    unparsable: Path
    schema: LogSchema
    columns: tuple[str, ...]  # the source columns, without ours
    named: tuple[str, ...]  # those of them that the schema names
    rules: tuple[Rule, ...]
    noted: tuple[Rule, ...]
    as_of: datetime | None
    dates: bool = False  # the times are dates by their type
    known_duplicates: frozenset[str] = frozenset()  # row ids whose first copy is elsewhere

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Source columns that the schema does not name."""
        return tuple(c for c in self.columns if c not in self.named)

    def batches(self, *, what: str) -> Iterator[pa.RecordBatch]:
        """The named columns with row id and source row, chunk by chunk. ``what`` labels the progress."""
        read = [ROW_ID, SOURCE_ROW, *self.named]
        with parquet_file(self.log) as file:
            size = _chunk_rows(len(read), self.schema)
            total = -(-file.metadata.num_rows // size)
            try:
                batches = file.iter_batches(batch_size=size, columns=read)
                for batch in track(batches, stage=STAGE, total=total, label=what):
                    yield batch.select(read)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{self.log} cannot be read to its end ({error}): ingest the log again") from error

    def rows_at(
        self, columns: Sequence[str], wanted: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[npt.NDArray[np.int64], pa.RecordBatch]]:
        """(row numbers, ``columns`` of these rows) of the rows where ``wanted`` [R] is true, in file order.

        Row groups without such a row are not read.
        """
        size = _chunk_rows(len(columns), self.schema)
        with parquet_file(self.log) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if wanted[start:end].any():
                    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=list(columns)):
                        mask = wanted[start : start + batch.num_rows]
                        if mask.any():
                            yield np.flatnonzero(mask) + start, rows_where(batch.select(list(columns)), mask)
                        start += batch.num_rows
                start = end


def open_rows(
    log: Path, unparsable: Path, schema: LogSchema, as_of: datetime | None, own: dict[str, str] | None = None
) -> RawRows:
    """Open ``log``. ``own`` are the additional columns of a quarantine.

    Raises:
        SchemaError: the schema does not fit the columns. DataError: the file is missing, damaged or not a raw log.
    """
    source = open_columns(log, own)
    check_columns(schema, source, str(log))
    named = tuple(name for name in named_columns(schema) if name in source.names)
    if as_of is not None and as_of.tzinfo is None:
        as_of = as_of.replace(tzinfo=timezone.utc)
    dates = schema.time.column is not None and pa.types.is_date(source.field(schema.time.column).type)
    rules, noted = row_rules(schema), noted_rules(schema)
    return RawRows(log, unparsable, schema, tuple(source.names), named, rules, noted, as_of, dates)


def open_columns(log: Path, own: dict[str, str] | None = None) -> pa.Schema:
    """The source columns of a file of raw rows: without those that ingest added, and those of a quarantine, ``own``.

    Raises:
        DataError: the file is missing, damaged or has no row ids.
    """
    with parquet_file(log) as file:
        arrow = file.schema_arrow
    for name in (ROW_ID, SOURCE_ROW):
        if name not in arrow.names:
            raise DataError(f"{log} has no column {name!r}: a raw log is written by ingest, ingest the source again")
    ours = {ROW_ID, SOURCE_ROW, *(own or {}).values()}
    return pa.schema([f for f in arrow if f.name not in ours])


def parquet_file(path: Path) -> pq.ParquetFile:
    """Open a parquet file. Raises DataError if it is missing or damaged."""
    try:
        return open_parquet(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: ingest the log again") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a readable parquet file (truncated or damaged): ingest the log again"
        ) from error


def frame_of(rows: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    """Arrow rows as a polars frame."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _chunk_rows(num_columns: int, schema: LogSchema) -> int:
    width = 24 * num_columns + sum(4 * v.dim for v in schema.vectors)
    return max(10_000, min(CHUNK_ROWS, CHUNK_BYTES // width))


def rows_where(batch: pa.RecordBatch, mask: npt.NDArray[np.bool_]) -> pa.RecordBatch:
    """The rows where ``mask`` is true, with their types."""
    try:
        return batch.filter(pa.array(mask))
    except pa.ArrowNotImplementedError:  # a type that arrow cannot filter
        return pa.concat_batches([batch.slice(int(i), 1) for i in np.flatnonzero(mask)])
