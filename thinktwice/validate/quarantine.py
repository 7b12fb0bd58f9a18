"""The quarantine folder: rows that broke a rule, with their unchanged source columns and all reasons.

``quarantine.parquet``  row_id, source_row, the source columns as they were, reasons list<string>, rule_set_version, run_id,
                        ingested_at. If the log itself has a column of one of these names, ours gets the prefix ``quarantine_``;
                        ``quarantine.json`` says which under ``columns``.
``unparsable.parquet``  records that never became rows: row_id, source_row, raw, error and the same four columns.
``quarantine.json``     the counts and the proof; ``schema.yaml`` the schema in force.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from thinktwice.parquet import parquet_writer, read_schema, read_table, write_table
from thinktwice.schema.fields import ROW_ID
from thinktwice.validate.column_rules import Rule
from thinktwice.validate.parse import SOURCE_ROW, broken
from thinktwice.validate.rules import UNSPLITTABLE

_OWN: tuple[tuple[str, pa.DataType], ...] = (
    ("reasons", pa.list_(pa.string())),
    ("rule_set_version", pa.string()),
    ("run_id", pa.string()),
    ("ingested_at", pa.timestamp("us", tz="UTC")),
)


SHOWN = 60  # characters of a value in a message


class Stamp(NamedTuple):
    """Values written into every quarantined row of one run."""

    rule_set_version: str
    run_id: str
    ingested_at: datetime | None  # None: not recorded


def original_columns(columns: Iterable[str]) -> dict[str, str]:
    """Our columns and their names, which avoid the source columns ``columns``."""
    taken = set(columns)
    names = {}
    for name, _ in _OWN:
        unique_name = name
        while unique_name in taken:
            unique_name = f"quarantine_{unique_name}"
        names[name] = unique_name
    return names


class QuarantineWriter:
    """Appends bad rows to ``path``; the file is created with its columns even if no row was bad."""

    def __init__(self, path: Path, log: Path, columns: tuple[str, ...], stamp: Stamp) -> None:
        source = read_schema(log)
        names = original_columns(columns)
        self.source_columns = [ROW_ID, SOURCE_ROW, *columns]
        fields = [source.field(name) for name in self.source_columns]
        fields += [pa.field(names[name], kind) for name, kind in _OWN]
        self._schema = pa.schema(fields)
        self._stamp = stamp
        self._writer = parquet_writer(path, self._schema, compression="zstd")

    def __enter__(self) -> QuarantineWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, rows: pa.RecordBatch, broken: pl.DataFrame) -> None:
        """Append source rows; ``broken`` has one boolean column ``!rule`` per rule, True where the row breaks it."""
        reason = [pl.when(pl.col(name)).then(pl.lit(name[1:])) for name in broken.columns]
        reasons = broken.select(pl.concat_list(reason).list.drop_nulls().alias("reasons"))["reasons"]
        arrays = [rows.column(name) for name in self.source_columns]
        arrays += _stamped(reasons.to_arrow().cast(pa.list_(pa.string())), self._stamp)
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


def exemplify(
    broken_rows: pl.DataFrame, rows: pa.RecordBatch, rules: tuple[Rule, ...], hidden: str | None, into: dict[str, str]
) -> None:
    """Keep the first value that breaks each rule, for messages; not those of the column ``hidden``, the ids of users."""
    for rule in rules:
        if rule.id in into or not rule.source or rule.source == hidden:
            continue
        positions = broken_rows[broken(rule)].arg_true()
        if len(positions):
            into[rule.id] = shown_value(rows.column(rule.source)[positions[0]])


def shown_value(scalar: pa.Scalar) -> str:
    """A value of a log for a message."""
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException):  # a time without a Python type, text that is not UTF-8
        return f"a {scalar.type} that cannot be shown"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(str(value)):,} characters)"


def write_unparsable(source: Path, target: Path, stamp: Stamp) -> None:
    """Copy the records that ingest could not split into columns to the quarantine."""
    if source.exists():
        table = read_table(source)
        table = table.drop_columns([name for name, _ in _OWN if name in table.column_names])
    else:
        text = [("raw", pa.string()), ("error", pa.string())]
        table = pa.schema([(ROW_ID, pa.string()), (SOURCE_ROW, pa.int64()), *text]).empty_table()
    reasons = pa.array([[UNSPLITTABLE.id]] * table.num_rows, pa.list_(pa.string()))
    for (name, _), column in zip(_OWN, _stamped(reasons, stamp), strict=True):
        table = table.append_column(name, column)
    write_table(table, target, compression="zstd")


def _stamped(reasons: pa.Array, stamp: Stamp) -> list[pa.Array]:
    moment = stamp.ingested_at
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    values = (stamp.rule_set_version, stamp.run_id, moment)
    filled = [pa.array([v] * len(reasons), kind) for v, (_, kind) in zip(values, _OWN[1:], strict=True)]
    return [reasons, *filled]
