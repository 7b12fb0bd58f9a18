"""Rows to score, from any table or a list of mappings: checked, and converted to the columns that the encoder reads.

Values are read by the same rules as in logs and requests (:mod:`thinktwice.schema.values`,
:mod:`thinktwice.schema.numbers`, the limits in :mod:`thinktwice.schema.limits`), so a value gets the same index as in
training and on a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.data.encoder import Encoder
from thinktwice.data.instant.definition import counter_names
from thinktwice.data.scoring_lists import lists_of_texts, read_sequence, separator_of
from thinktwice.errors import DataError, SchemaError
from thinktwice.schema import EVENT_TIME, LogSchema, ModelField
from thinktwice.schema.columns import READ, is_read, is_text
from thinktwice.schema.fields import Sequence as LoggedSequence
from thinktwice.schema.limits import EARLIEST_US, FLOAT32_LIMIT, INEXACT_FROM, LATEST_US, is_inexact, text_is_wrong
from thinktwice.schema.numbers import missing, number, numbers
from thinktwice.schema.times import FORMS, derive, instant_of, instants, is_time, on_present
from thinktwice.schema.truth import truth, truths
from thinktwice.schema.values import as_series, can_spell, one_array, spell, spelled
from thinktwice.schema.weights import read_weights, uneven, weight
from thinktwice.validate.parse import log_times

TIMESTAMP = "timestamp"  # name of the impression time in requests
SHOWN = 60  # characters of a value in a message
_ELEMENTS = {"sequence": pa.string(), "vector": pa.float32(), "weights": pa.float64()}
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@runtime_checkable
class ArrowTable(Protocol):
    """Any table with the Arrow C stream interface: pyarrow, polars, pandas, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Rows: TypeAlias = ArrowTable | pa.RecordBatch | Sequence[Mapping[str, Any]]


def as_table(rows: Rows, schema: LogSchema, encoder: Encoder) -> pa.Table:
    """Rows of any accepted form as an Arrow table with columns named as the fields of the model.

    A column may have the name of its field or the field's column name in the log (``column`` in the schema); the field's
    own name wins. Other columns are kept.

    Raises:
        DataError: the rows have an unsupported form, two columns have the same name, or a mapping has a value of the wrong
            kind.
    """
    if isinstance(rows, (pa.Table, pa.RecordBatch, ArrowTable)):
        try:
            table = pa.table(rows)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"the rows cannot be read as a table ({error}): give an Arrow or polars table") from error
        names = table.column_names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"the table has two columns named {repeated[0]!r}: rename one")
        for name, column in _source_columns(schema).items():
            if name not in names and column in names:
                table = table.append_column(name, table[column])
        for sequence in schema.sequences:
            if sequence.name not in names and sequence.column in names:
                table = table.append_column(sequence.name, _logged_sequence(table[sequence.column], sequence))
        return table
    if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        if not all(isinstance(row, Mapping) for row in rows):
            raise DataError("a row is not a mapping of field names to values: give one mapping per row")
        return _table_of_mappings(rows, schema, encoder)
    raise DataError(
        f"rows of type {type(rows).__name__} cannot be scored: give an Arrow or polars table, or a list of mappings"
    )


def read_fields(table: pa.Table, schema: LogSchema, encoder: Encoder) -> pa.Table:
    """The columns that the encoder reads, checked: texts as they are spelled, numbers float64, sequences and vectors as lists.

    Derived fields (hour, weekday) that have no column are computed from ``event_time``, ``timestamp`` or the log's own time
    column. Other columns are dropped.

    Args:
        table: [R] from :func:`as_table`.

    Raises:
        SchemaError: a field has no column, or its column has an unsupported type.
        DataError: a value has the wrong kind or is out of range; the message names column, row and value.
    """
    derived = {f.name: f.derived for f in schema.fields if f.derived and f.name not in table.column_names}
    local: pl.Series | None = None
    if derived and time_column(table, schema) is not None:
        local = on_present(event_times(table, schema), schema.zone.local)
    absent = [
        f.name
        for f in encoder.row_fields
        if f.name not in table.column_names and not (f.name in derived and local is not None)
    ]
    if absent:
        raise SchemaError(_absent(absent, encoder, derived))
    out: dict[str, pa.Array] = {}
    for f in encoder.row_fields:
        part = derived.get(f.name)
        if part is not None and local is not None:
            out[f.name] = on_present(local, partial(derive, part)).cast(pl.String).to_arrow()
        else:
            values = encoder.widened(table[f.name])
            out[f.name] = _truths(f.name, values) if f.name in schema.boolean_fields else _checked(f, schema, values)
    for f in encoder.sequences:
        if f.weights:
            lengths = as_series(out[f.name]).list.len()
            differ = uneven(lengths, as_series(out[f.weights]))
            _refuse(f.weights, table[f.weights], differ, f"has another number of weights than {f.name!r} has elements")
    return pa.table(out)


def read_counters(table: pa.Table, schema: LogSchema) -> npt.NDArray[np.float32]:
    """The counters of the rows [R, C] from columns of their names; null and NaN are unknown.

    Raises:
        SchemaError: a counter has no column.
        DataError: a value is not a finite number.
    """
    names = counter_names(schema)
    if absent := [name for name in names if name not in table.column_names]:
        raise SchemaError(
            f"the rows have no column {absent[0]!r}, one of {len(names)} counters that the model reads: compute them with "
            "`thinktwice score --features point-in-time --clean`, or add the columns (null where unknown)"
        )
    out = np.empty((table.num_rows, len(names)), np.float32)
    for position, name in enumerate(names):
        values = table[name]
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_null, is_text)
        if not any(test(values.type) for test in kinds):
            raise SchemaError(f"column {name!r} has type {values.type}: counters are numbers, write them as such")
        if is_text(values.type):
            column = numbers(values)
            _refuse(name, values, column.is_null() & ~missing(values), "is not a finite number")
        else:
            column = as_series(values.combine_chunks()).cast(pl.Float64).fill_nan(None)
        _refuse(name, values, column.abs() >= FLOAT32_LIMIT, "is not a finite number")
        out[:, position] = column.fill_null(np.nan).to_numpy()
    return out


def time_column(table: pa.Table, schema: LogSchema) -> str | None:
    """The column with the time of the impressions, None if there is none."""
    fields = {f.name for f in schema.row_fields()}
    for name in (EVENT_TIME, TIMESTAMP, schema.time.column):
        if name is not None and name in table.column_names and (name == EVENT_TIME or name not in fields):
            return name
    return None


def event_times(table: pa.Table, schema: LogSchema) -> pl.Series:
    """Instants [R] of the rows in microseconds (int64), null where the time is missing.

    ``event_time`` and ``timestamp`` contain times, texts of a time, or Unix seconds; the log's own column is read by its
    ``format``.

    Raises:
        SchemaError: there is no time column.
        DataError: a time cannot be read or is outside 1970 .. 2100.
    """
    name = time_column(table, schema)
    if name is None:
        raise SchemaError(f"the rows have no time: add a column {EVENT_TIME!r} of timestamps")
    values = table[name].combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if name == schema.time.column:
        micros = log_times(schema, values).micros
    elif is_time(values.type) or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        micros = instants(values, schema.zone).micros
    else:
        micros = (numbers(values) * 1_000_000).round().cast(pl.Int64, strict=False)
    known = pl.select(pl.when(micros.is_between(EARLIEST_US, LATEST_US)).then(micros)).to_series()
    _refuse(name, values, known.is_null() & ~missing(values), f"is not a time between 1970 and 2100: give {FORMS}")
    return known


def _source_columns(schema: LogSchema) -> dict[str, str]:
    """Field name -> column of the log, where the two differ."""
    out = {f.name: f.source_column for f in schema.fields if f.derived is None}
    out |= {v.name: v.source_column for v in schema.vectors}
    out |= {f.weights.name: f.weights.source_column for f in schema.fields if f.weights is not None}
    out |= {k.key: k.source_column for k in (schema.entities.user, schema.entities.item) if k is not None}
    return {name: column for name, column in out.items() if name != column}


def _absent(absent: list[str], encoder: Encoder, derived: Mapping[str, str | None]) -> str:
    looked_up = [f.name for f in encoder.fields if f.name in absent and f.origin in ("statistic", "sequence")]
    words = f"the rows have no column {', '.join(map(repr, absent))}, which the model reads"
    if looked_up:
        return f"{words}: fetch the features with `thinktwice score --features point-in-time`, or add the columns (null where unknown)"
    if set(absent) <= set(derived):
        return f"{words}: add it, or a column {EVENT_TIME!r} of timestamps"
    return f"{words}: add the columns (null where a value is unknown)"


def _logged_sequence(values: pa.ChunkedArray, described: LoggedSequence) -> pa.Array:
    if not is_read(values.type, "list"):
        raise SchemaError(
            f"column {described.column!r} has type {values.type}: sequence {described.name!r} is read from {READ['list']}, write it so"
        )
    return read_sequence(one_array(values), described)


def _checked(f: ModelField, schema: LogSchema, values: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    if f.kind == "categorical":
        return _texts(f.name, values)
    if f.kind == "numeric":
        return _numbers(f.name, values)
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.list_(_ELEMENTS[f.kind]))
    given = values
    if is_text(values.type):
        lists, split = lists_of_texts(f, schema, values)
        _refuse(f.name, given, split, f"has {separator_of(f, schema)!r} inside an element: write lists")
        values = pa.chunked_array([lists])
    if not any(test(values.type) for test in _LISTS):
        raise SchemaError(
            f"column {f.name!r} has type {values.type}: the model reads a list in every row, write one (null for none), "
            f"or text with {separator_of(f, schema)!r} between the elements"
        )
    values = one_array(values)
    inner = values.type.value_type
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(inner))
    if f.kind == "sequence":
        if not can_spell(inner):
            raise SchemaError(
                f"column {f.name!r} has type {values.type}: the model reads ids, write lists of text or integers"
            )
        return values
    return _weights(f.name, values, given) if f.kind == "weights" else _vectors(f, values, given)


def _texts(name: str, values: pa.ChunkedArray) -> pa.Array:
    if not can_spell(values.type):
        raise SchemaError(
            f"column {name!r} has type {values.type}: the model reads ids or categories there, write them as text or integers"
        )
    words = spelled(values)
    _refuse(name, words.to_arrow(), pl.select(text_is_wrong(pl.lit(words))).to_series(), "is too long, or contains NUL")
    if pa.types.is_floating(values.type):
        size = as_series(values.cast(pa.float64())).abs()
        inexact = size >= INEXACT_FROM[values.type.bit_width]
        _refuse(
            name, values, inexact, "is a float too large to represent integers exactly: give ids as integers or text"
        )
    return words.to_arrow()


def _truths(name: str, values: pa.ChunkedArray) -> pa.Array:
    if not can_spell(values.type):
        raise SchemaError(
            f"column {name!r} has type {values.type}: the model reads truth values there, write true and false"
        )
    read = truths(values)
    _refuse(name, values, read.is_null() & ~missing(values), "is neither true nor false")
    return read.to_arrow()


def _numbers(name: str, values: pa.ChunkedArray) -> pa.Array:
    parsed = numbers(values)
    nothing = missing(values)
    if parsed.null_count() and len(parsed) and not pa.types.is_null(values.type):
        _refuse(name, values, parsed.is_null() & ~nothing, "is not a number below 1e300")
    return parsed.to_arrow()


def _weights(name: str, values: pa.Array, given: pa.ChunkedArray) -> pa.Array:
    lists, element = read_weights(values), pl.element()
    invalid = lists.list.eval((element < 0) | element.is_null()).list.any()
    _refuse(name, given, invalid, "is not a list of numbers of at least 0 and below 1e300")
    return lists.to_arrow()


def _vectors(f: ModelField, values: pa.Array, given: pa.ChunkedArray) -> pa.Array:
    inner = values.type.value_type
    if not (pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_null(inner)):
        raise SchemaError(
            f"column {f.name!r} has type {values.type}: the model reads {f.dim} numbers in every row, write lists of them"
        )
    lists = as_series(values).cast(pl.List(pl.Float64))
    invalid = lists.list.len() != f.dim
    within = (pl.element().is_finite() & (pl.element().abs() < FLOAT32_LIMIT)).fill_null(False)
    invalid |= ~lists.list.eval(within).list.all()
    _refuse(f.name, given, invalid.fill_null(False), f"is not a list of {f.dim} finite numbers")
    return lists.cast(pl.List(pl.Float32)).to_arrow()


def _refuse(name: str, values: pa.Array | pa.ChunkedArray, invalid: pl.Series, problem: str) -> None:
    positions = invalid.fill_null(False).arg_true()
    if len(positions) == 0:
        return
    shown = str(values[int(positions[0])].as_py())
    shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
    more = f" ({len(positions):,} rows like it)" if len(positions) > 1 else ""
    raise DataError(f"column {name!r}, row {int(positions[0])}: {shown!r} {problem}{more}")


def _table_of_mappings(rows: Sequence[Mapping[str, Any]], schema: LogSchema, encoder: Encoder) -> pa.Table:
    """Mappings as a table. Values are read one by one, so a field may have ints in one row and strings in another."""
    sources = _source_columns(schema)
    out: dict[str, pa.Array] = {}

    def column(name: str, names: Sequence[str], read: Any, kind: pa.DataType) -> None:
        present = next((n for n in names if any(n in row for row in rows)), name)
        if rows and not any(present in row for row in rows):
            return
        values = []
        for position, row in enumerate(rows):
            try:
                values.append(read(row.get(present)))
            except (TypeError, ValueError, OverflowError) as error:
                shown = repr(row.get(present))[:SHOWN]
                raise DataError(f"row {position}, field {name!r}: {shown} {error}") from None
        out[name] = pa.array(values, kind)

    def plain(value: Any) -> Any:
        narrow = encoder.widens and isinstance(value, (np.float32, np.float16))
        return float(value) if narrow else value

    def word(value: Any) -> str | None:
        value = plain(value)
        if is_inexact(value):
            raise ValueError("is a float too large to represent integers exactly: give ids as integers or text")
        try:
            text = spell(value)
        except TypeError:
            raise ValueError("is neither an id nor a category") from None
        if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError("contains half of a surrogate pair")
        return text

    def words(value: Any) -> list[str | None] | None:
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ValueError("is not a list")
        return [word(v) for v in value]

    def vector(value: Any) -> list[float | None] | None:
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ValueError("is not a list")
        return [number(v) for v in value]

    def weights(value: Any) -> list[float] | None:
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ValueError("is not a list")
        return [weight(plain(v)) for v in value]

    def when(value: Any) -> int | None:
        if value is None or value != value:
            return None
        try:
            if isinstance(value, (str, date, np.datetime64)):
                return instant_of(value, schema.zone)
            parsed = number(value)
            return None if parsed is None else round(parsed * 1_000_000)
        except ValueError:
            raise ValueError(f"is not a time: give Unix seconds, or {FORMS}") from None

    readers = {
        "categorical": (word, pa.string()),
        "numeric": (lambda value: number(plain(value)), pa.float64()),
        "sequence": (words, pa.list_(pa.string())),
        "vector": (vector, pa.list_(pa.float64())),
        "weights": (weights, pa.list_(pa.float64())),
    }
    for f in encoder.row_fields:
        read, kind = (truth, pa.string()) if f.name in schema.boolean_fields else readers[f.kind]
        column(f.name, [f.name, sources.get(f.name, f.name)], read, kind)
    for key in (schema.key_of("user"), schema.key_of("item")):
        if key is not None and key not in out:
            column(key, [key, sources.get(key, key)], word, pa.string())
    for name in counter_names(schema):
        column(name, [name], lambda value: number(plain(value)), pa.float64())
    names = [EVENT_TIME, *([TIMESTAMP] if all(f.name != TIMESTAMP for f in schema.model_fields_in_order()) else [])]
    column(EVENT_TIME, names, when, pa.timestamp("us", "UTC"))
    return pa.table(out) if out else pa.table({EVENT_TIME: pa.nulls(len(rows), pa.timestamp("us", "UTC"))})
