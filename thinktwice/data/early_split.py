"""Refusal of a split that a log cannot have, before the log is read as a whole: by its columns, its first rows and its times."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pyarrow as pa

from thinktwice.data.reading import Reading, is_object
from thinktwice.data.sources.own_log import open_files
from thinktwice.data.sources.paths import SEPARATOR, expanded, is_text_log, log_files
from thinktwice.data.split_spec import SplitSpec
from thinktwice.data.splits import no_parts, refuse_column, unknown_parts
from thinktwice.data.window import Window
from thinktwice.errors import DataError
from thinktwice.schema import LogSchema
from thinktwice.schema.columns import named_columns
from thinktwice.schema.limits import EARLIEST_US, LATEST_US
from thinktwice.schema.values import one_array, spelled
from thinktwice.validate.parse import log_times

_DAY_US = 86_400_000_000


def refuse_impossible_split(spec: SplitSpec, path: str, schema: LogSchema, window: Window) -> None:
    """Raise if the log of ``path`` (one or several) cannot be split by ``spec``. What only the whole log tells is checked later; JSON
    lines, whose columns are known when they have been read, and logs of an object store are not opened here.

    Raises:
        SchemaError: the log has no such column. DataError: its values name no parts, or its times leave a part empty.
    """
    if spec.kind not in ("column", "days", "dates") or any(is_object(part) for part in path.split(SEPARATOR)):
        return
    paths = expanded(path)
    if any(is_text_log(part) for part in paths) and log_files(paths).format == "json lines":
        return
    reading = open_files(path, named_columns(schema))
    if spec.kind == "column":
        _check_column(str(spec.column), reading, schema)
    elif schema.time.column in reading.columns.names:
        _check_times(spec, reading, schema, window)


def _check_column(column: str, reading: Reading, schema: LogSchema) -> None:
    refuse_column(column, reading.columns)
    for chunk in reading.chunks():
        if not chunk.table.num_rows:
            continue
        values = spelled(one_array(chunk.table.column(column)))
        unknown = unknown_parts(values)
        # Rows that a run quarantines need no part, but a run with more of them fails.
        if len(unknown) > schema.quarantine_budget * len(values):
            raise DataError(no_parts(column, unknown, f"the first {len(values):,}"))
        return


def _check_times(spec: SplitSpec, reading: Reading, schema: LogSchema, window: Window) -> None:
    """Read times until those that the split needs have been seen."""
    first: date | None = None
    last: date | None = None
    for chunk in reading.chunks():
        table = (window.inside(chunk, schema) if window else chunk).table
        values = one_array(table.column(str(schema.time.column)))
        values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        micros = log_times(schema, values).micros
        known = micros.filter(micros.is_between(EARLIEST_US, LATEST_US))
        if not len(known):
            continue
        low, high = (_local_day(schema, value) for value in (known.min(), known.max()))
        first, last = min(first or low, low), max(last or high, high)
        if _fits(spec, first, last):
            return
    if first is not None and last is not None:
        fix = "give a longer log, or a smaller number of days" if spec.kind == "days" else "choose dates within them"
        raise DataError(
            f"--split {spec.text} leaves no rows for training or test: the rows of {reading.where} are of {first} to {last}; {fix}"
        )


def _fits(spec: SplitSpec, first: date, last: date) -> bool:
    if spec.kind == "days":
        assert spec.days is not None
        return first <= last - timedelta(days=2 * spec.days)
    assert spec.valid_from is not None and spec.test_from is not None
    return first < spec.valid_from and spec.test_from <= last


def _local_day(schema: LogSchema, micros: object) -> date:
    assert isinstance(micros, int)
    return (datetime(1970, 1, 1) + timedelta(days=int(schema.zone.local(micros)) // _DAY_US)).date()
