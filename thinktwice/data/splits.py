"""Assignment of rows to train, validation and test (:class:`SplitSpec`), independent of the order of rows."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.data.reading import LOG_FILE
from thinktwice.data.row_ids import row_numbers
from thinktwice.data.split_spec import PARTS as PARTS
from thinktwice.data.split_spec import SplitSpec as SplitSpec
from thinktwice.errors import DataError, SchemaError
from thinktwice.parquet import read_schema, read_table
from thinktwice.schema.columns import known_column
from thinktwice.schema.fields import ROW_ID
from thinktwice.schema.times import Zone, zone_named
from thinktwice.schema.values import can_spell, spelled
from thinktwice.xxh64 import xxh64_of_integers

#: Values of a split column, in any case -> their part.
PART_NAMES = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("valid", "validation", "val", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1)


def assign_split(
    event_time: np.ndarray,
    row_id: np.ndarray,
    spec: SplitSpec,
    zone: Zone | None = None,
    given: np.ndarray | None = None,
) -> np.ndarray:
    """Part of every row as an index into :data:`PARTS`.

    Args:
        event_time: [R] int64 microseconds.
        row_id: [R] strings of 16 hex digits, unique; the random split is a seeded hash of them.
        spec: the kind of split and its settings.
        zone: time zone of the calendar days of a split by days or dates; default UTC.
        given: [R] int8, the parts from the column of a split by column (:func:`given_parts`).

    Returns:
        [R] int8. In a split by time, days or dates all rows of one instant are in one part, so no instant straddles a boundary.
    """
    rows = len(event_time)
    if rows == 0:
        return np.zeros(0, np.int8)
    if spec.kind == "column":
        assert given is not None, "a split by column needs its values"
        return _with_validation(event_time, given, spec.valid)
    if spec.kind == "random":
        codes = np.zeros(rows, np.int8)
        draw = xxh64_of_integers(row_numbers(row_id), spec.seed % 2**64) / 2.0**64
        codes[draw >= 1 - spec.valid - spec.test] = 1
        codes[draw >= 1 - spec.test] = 2
        return codes
    if spec.kind == "time":
        ordered = np.sort(event_time)
        valid_from = ordered[min(int(rows * (1 - spec.valid - spec.test)), rows - 1)]
        test_from = ordered[min(int(rows * (1 - spec.test)), rows - 1)]
    else:
        valid_from, test_from = _day_borders(event_time, spec, zone or zone_named("UTC"))
    return (event_time >= valid_from).astype(np.int8) + (event_time >= test_from).astype(np.int8)


def _day_borders(event_time: np.ndarray, spec: SplitSpec, zone: Zone) -> tuple[int, int]:
    """First instants of validation and test: midnights of the zone."""
    if spec.kind == "dates":
        assert spec.valid_from is not None and spec.test_from is not None
        days = [_day_number(spec.valid_from), _day_number(spec.test_from)]
    else:
        assert spec.days is not None
        after_last = int(zone.local(int(event_time.max()))) // _DAY_US + 1
        days = [after_last - 2 * spec.days, after_last - spec.days]
    return zone.instant(days[0] * _DAY_US), zone.instant(days[1] * _DAY_US)


def _day_number(day: date) -> int:
    return (datetime(day.year, day.month, day.day) - _EPOCH).days


def _with_validation(event_time: np.ndarray, given: np.ndarray, share: float) -> np.ndarray:
    """``given``; if it has no validation rows, the latest ``share`` of its train rows (whole instants) become validation."""
    codes = given.astype(np.int8)
    train = codes == 0
    if (codes == 1).any() or not train.any():
        return codes
    ordered = np.sort(event_time[train])
    valid_from = ordered[min(int(len(ordered) * (1 - share)), len(ordered) - 1)]
    codes[train & (event_time >= valid_from)] = 1
    return codes


def given_parts(log_dir: Path, column: str, row_id: pl.Series) -> np.ndarray:
    """The parts [R] that ``column`` of the raw log in ``log_dir`` gives to the rows ``row_id`` [R], as indices into :data:`PARTS`.

    Raises:
        SchemaError: the log has no such column, or the column has a nested type.
        DataError: a row has no value, or a value that names no part.
    """
    log = log_dir / LOG_FILE
    refuse_column(column, read_schema(log))
    read = read_table(log, [ROW_ID, column])
    table = pl.DataFrame({ROW_ID: read[ROW_ID], "part": spelled(read[column])})
    joined = pl.DataFrame({ROW_ID: row_id}).join(table, on=ROW_ID, how="left", maintain_order="left")
    if joined.height != len(row_id):
        raise DataError(f"the rows of {log} share row ids: ingest the log again")
    codes = _codes(joined["part"])
    if codes.null_count():
        raise DataError(no_parts(column, joined["part"].filter(codes.is_null()), f"{len(codes):,}"))
    return codes.to_numpy()


def refuse_column(column: str, columns: pa.Schema) -> None:
    """Raise SchemaError if a log with these columns has no such column, or one of a nested type."""
    if column not in columns.names:
        raise SchemaError(f"--split column:{column}: the log has no such column; {known_column(column, columns.names)}")
    if not can_spell(columns.field(column).type):
        raise SchemaError(
            f"--split column:{column}: the column has type {columns.field(column).type}; "
            "write train, valid or test into it as text"
        )


def unknown_parts(values: pl.Series) -> pl.Series:
    """Those of the spelled ``values`` that name no part."""
    return values.filter(_codes(values).is_null())


def _codes(values: pl.Series) -> pl.Series:
    return values.str.to_lowercase().replace_strict(PART_NAMES, default=None, return_dtype=pl.Int8)


def no_parts(column: str, unknown: pl.Series, rows: str) -> str:
    """The message about the ``unknown`` values among ``rows`` rows, of which there is at least one."""
    value, count = unknown.value_counts(sort=True).row(0)
    shown = "no value" if value is None else f"the value {str(value)[:60]!r}"
    return (
        f"--split column:{column}: {count:,} of {rows} rows have {shown}; write train, valid or test "
        f"(or {', '.join(name for name in PART_NAMES if name not in PARTS)}) into the column"
    )
