"""The first pass over a raw log: copies of earlier rows, and the part of the clean log that each row belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.schema.fields import ROW_ID
from thinktwice.schema.log import LogSchema
from thinktwice.schema.numbers import missing
from thinktwice.schema.values import as_series
from thinktwice.validate.copies import later_copies
from thinktwice.validate.parse import event_time
from thinktwice.validate.raw_rows import RawRows
from thinktwice.validate.row_keys import Keys, row_keys

PART_ROWS = 1_200_000  # rows sorted at once


@dataclass(frozen=True)
class SplitPlan:
    """Result of the first pass over R rows."""

    keys: Keys  # [R] row ids, in file order
    duplicate: npt.NDArray[np.bool_]  # [R] a later copy of a row
    part: npt.NDArray[np.int32]  # [R] part of the clean log that a row belongs to if it is clean
    num_parts: int


def plan_of(source: RawRows) -> SplitPlan:
    """First pass."""
    find = any(rule.check == "duplicate" for rule in source.rules)
    keys, times, first, second, known = [], [], [], [], []
    nobody: list[npt.NDArray[np.bool_]] = []
    coarse = True
    for batch in source.batches(what="order"):
        ids = as_series(batch.column(ROW_ID))
        keys.append(row_keys(ids, where=str(source.log)))
        micros = event_time(source.schema, batch)
        coarse = coarse and _only_hours(micros, source.schema)
        times.append(micros.fill_null(0).to_numpy())
        if find and source.schema.has_anonymous_users:
            nobody.append(_without_user(source.schema, batch))
        if find:
            rows = _hashable(batch.select(source.named))
            first.append(rows.hash_rows(seed=1).to_numpy())
            second.append(rows.hash_rows(seed=2).to_numpy())
            known.append(ids.is_in(list(source.known_duplicates)).to_numpy())
    if not keys:
        return SplitPlan(np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros(0, np.int32), 1)
    key = np.concatenate(keys)
    if find and not coarse:
        duplicate = later_copies(source, np.concatenate(first), np.concatenate(second)) | np.concatenate(known)
    elif find and not source.dates:
        duplicate = np.concatenate(known)
    else:
        duplicate = np.zeros(len(key), dtype=bool)
    if nobody:  # equal rows of two anonymous users are normal
        duplicate &= ~np.concatenate(nobody)
    num_parts = -(-len(key) // PART_ROWS)
    part = np.zeros(len(key), dtype=np.int32)
    if num_parts > 1:
        part[np.lexsort((key, np.concatenate(times)))] = np.arange(len(key)) // PART_ROWS
    return SplitPlan(key, duplicate, part, num_parts)


def _only_hours(micros: pl.Series, schema: LogSchema) -> bool:
    """Whether all times are full hours in the log's time zone: then equal rows are normal."""
    known = micros.drop_nulls().to_numpy()
    return bool((schema.zone.local(known) % 3_600_000_000 == 0).all())


def _hashable(rows: pa.RecordBatch) -> pl.DataFrame:
    """Columns of any type, converted so that equal values have equal hashes. Text is used as bytes."""
    columns = []
    for name, values in zip(rows.schema.names, rows.columns, strict=True):
        if pa.types.is_decimal256(values.type):
            values = values.cast(pa.large_string())
        elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = values.cast(pa.large_binary())
        columns.append(as_series(values).rename(name))
    return pl.DataFrame(columns)


def _without_user(schema: LogSchema, rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """[R] whether a row has no id of the user."""
    assert schema.entities.user is not None
    values = rows.column(schema.entities.user.source_column)
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    return missing(values).to_numpy()
