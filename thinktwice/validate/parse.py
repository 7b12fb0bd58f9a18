"""Parsing of the source columns of a raw log into canonical columns, and of the rules that each row breaks.

A chunk of rows is processed twice: :func:`read_columns` reads every column that the schema names, once for each use (as
text, number, time, ...), by the rules of :mod:`thinktwice.schema`; the rest is one polars selection over the result.
There is no Python loop over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Literal

import polars as pl
import pyarrow as pa

from thinktwice.schema.elements import read_vectors
from thinktwice.schema.fields import (
    EVENT_TIME,
    LABEL,
    ROW_ID,
    ROW_WEIGHT,
    VALID_FROM,
    ElementWeights,
    Entities,
    Entity,
    EntityKey,
    LogField,
    Sequence,
    SideTables,
    TimeColumn,
    Vector,
)
from thinktwice.schema.limits import EARLIEST_US, INEXACT_FROM, LATEST_US, text_is_wrong
from thinktwice.schema.log import LogSchema
from thinktwice.schema.numbers import SPACE, holds_text, missing, numbers
from thinktwice.schema.times import Instants, derive, instants, is_time, localized, on_present, zone_named
from thinktwice.schema.truth import truths
from thinktwice.schema.values import as_series, spelled, texts
from thinktwice.validate.column_rules import WEIGHT_CHECKS, Rule
from thinktwice.validate.lists import LIST, SPLIT, WEIGHTS, WRONG, newest_first, read_element_weights, read_lists

SOURCE_ROW = "source_row"
TITLE = "title"
PROPENSITY = "propensity"
TRUTH = "truth"

_TEXT, _TRUTH, _NUMBER, _LABEL, _MISSING, _VECTOR = "text", "truth", "number", "label", "missing", "vector"
_INEXACT = "inexact"
_READABLE, _MICROS, _ZONELESS = "time readable", "time micros", "time zoneless"
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def broken(rule: Rule) -> str:
    """Name of the boolean column with whether a row breaks ``rule``. No field name can start with '!'."""
    return f"!{rule.id}"


def read_columns(schema: LogSchema, rows: pa.RecordBatch) -> pl.DataFrame:
    """Every source column that the schema names, read once for each use of it, with the columns that ingest added.

    Numbers are float64, texts strings, vectors lists of float32, times int64 microseconds; null if the value is missing or
    not of that kind. Other columns of ``rows`` are ignored.
    """
    out = {ROW_ID: as_series(rows.column(ROW_ID))}
    if schema.time.column is None:  # format "order": one second per row
        micros = as_series(rows.column(SOURCE_ROW)).cast(pl.Int64) * 1_000_000
        moment = Instants(micros, pl.repeat(False, len(micros), eager=True))
    else:
        moment = log_times(schema, _plain(rows.column(schema.time.column)))
    inside = pl.when(moment.micros.is_between(EARLIEST_US, LATEST_US)).then(moment.micros)
    out |= {_READABLE: moment.micros.is_not_null(), _MICROS: pl.select(inside).to_series(), _ZONELESS: moment.zoneless}
    out |= _weights_of(schema.logged_fields, rows)
    return _read(_uses(schema), rows, out)


def read_table_columns(schema: LogSchema, entity: Literal["user", "item"], rows: pa.RecordBatch) -> pl.DataFrame:
    """Like :func:`read_columns`, for rows of the side table of an entity; without ``valid_from`` their time is that of
    :data:`~thinktwice.schema.limits.EARLIEST_US`."""
    out = {ROW_ID: as_series(rows.column(ROW_ID))}
    valid_from = schema.valid_from(entity)
    if valid_from is None:
        always = pl.repeat(EARLIEST_US, rows.num_rows, dtype=pl.Int64, eager=True)
        moment = Instants(always, pl.repeat(False, rows.num_rows, eager=True))
    else:
        moment = times_of(valid_from, _plain(rows.column(str(valid_from.column))))
    inside = pl.when(moment.micros.is_between(EARLIEST_US, LATEST_US)).then(moment.micros)
    out |= {_READABLE: moment.micros.is_not_null(), _MICROS: pl.select(inside).to_series(), _ZONELESS: moment.zoneless}
    parts = (schema.table_fields(entity), schema.table_vectors(entity), schema.table_sequences(entity))
    uses = [(_TEXT, schema.table_key(entity)), *_uses_of(*parts)]
    title = schema.table_title(entity)
    out |= _weights_of(schema.table_fields(entity), rows)
    return _read([*uses, *([(_TEXT, title)] if title is not None else [])], rows, out)


def _read(uses: Iterable[tuple[str, str]], rows: pa.RecordBatch, out: dict[str, pl.Series]) -> pl.DataFrame:
    for use, column in dict.fromkeys(uses):
        values = _plain(rows.column(column))
        out[_name(_MISSING, column)] = missing(values)
        separator = use.removeprefix(LIST) if use.startswith(LIST) else None
        for measure, series in _READERS[use](values) if separator is None else read_lists(values, separator):
            out[_name(measure, column)] = series
    return pl.DataFrame({name: values.rename(name) for name, values in out.items()})


def _weights_of(fields: Iterable[LogField], rows: pa.RecordBatch) -> dict[str, pl.Series]:
    """The weights of the elements of lists, and the rules that they break."""
    out: dict[str, pl.Series] = {}
    for field in fields:
        if field.weights is None:
            continue
        lists, weights = (_plain(rows.column(name)) for name in (field.source_column, field.weights.source_column))
        for measure, values in read_element_weights(lists, weights, field.separated_by):
            out[_name(measure, field.weights.name)] = values
    return out


def event_time(schema: LogSchema, rows: pa.RecordBatch) -> pl.Series:
    """Microseconds since the epoch as int64; null if the time cannot be read or is outside 1970 .. 2100."""
    only_time = schema.model_copy(
        update={
            "entities": Entities(),
            "fields": (),
            "sequences": (),
            "vectors": (),
            "tables": SideTables(),
            "propensity": None,
            "truth": None,
            "weight": None,
        }
    )
    return read_columns(only_time, rows)[_MICROS]


def extra_columns(schema: LogSchema) -> dict[str, str]:
    """Source columns of numbers that are no fields, by their names in a clean log."""
    named = {PROPENSITY: schema.propensity, TRUTH: schema.truth, ROW_WEIGHT: schema.weight}
    return {name: column for name, column in named.items() if column is not None}


def canonical(schema: LogSchema, read: pl.DataFrame) -> pl.DataFrame:
    """The columns of a clean log in their order, from :func:`read_columns`.

    Types: row_id and categoricals string, event_time datetime[us, UTC], label int8, numbers float64, vectors list of float32.
    """
    micros = read[_MICROS]
    local = on_present(micros, schema.zone.local)
    out: dict[str, pl.Expr | pl.Series] = {ROW_ID: pl.col(ROW_ID)}
    out[EVENT_TIME] = micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    label = pl.col(_name(_LABEL, schema.label.column))
    if schema.label.threshold is not None:
        out[LABEL] = (label >= schema.label.threshold).cast(pl.Int8)
    else:
        out[LABEL] = pl.when(label.is_in([0.0, 1.0])).then(label).cast(pl.Int8)
    for entity in (schema.entities.user, schema.entities.item):
        if entity is not None:
            out[entity.key] = pl.col(_name(_TEXT, entity.source_column))
    for field in schema.logged_fields:
        if field.derived is not None:
            out[field.name] = on_present(local, partial(derive, field.derived)).cast(pl.String)
        else:
            out[field.name] = _of_known_user(schema, field.entity, _canonical_field(field))
        if field.weights is not None:
            out[field.weights.name] = _of_known_user(schema, field.entity, _canonical_weights(field.weights))
    out |= {s.name: _of_known_user(schema, s.entity, _canonical_sequence(s)) for s in schema.logged_sequences}
    for vector in schema.logged_vectors:
        values = pl.col(_name(_VECTOR, vector.source_column))
        out[vector.name] = _of_known_user(schema, vector.entity, values)
    if schema.logged_title is not None:
        out[TITLE] = pl.col(_name(_TEXT, schema.logged_title))
    for name, column in extra_columns(schema).items():
        out[name] = pl.col(_name(_NUMBER, column))
    return read.select(values.alias(name) for name, values in out.items())


def canonical_table(schema: LogSchema, entity: Literal["user", "item"], read: pl.DataFrame) -> pl.DataFrame:
    """The columns of a clean side table in their order, from :func:`read_table_columns`: row_id, the key, the time from which
    the row is valid, fields, vectors, title."""
    key = schema.key_of(entity)
    assert key is not None
    out: dict[str, pl.Expr | pl.Series] = {ROW_ID: pl.col(ROW_ID)}
    out[key] = pl.col(_name(_TEXT, schema.table_key(entity)))
    out[VALID_FROM] = read[_MICROS].cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    for field in schema.table_fields(entity):
        out[field.name] = _canonical_field(field)
        if field.weights is not None:
            out[field.weights.name] = _canonical_weights(field.weights)
    out |= {s.name: _canonical_sequence(s) for s in schema.table_sequences(entity)}
    out |= {v.name: pl.col(_name(_VECTOR, v.source_column)) for v in schema.table_vectors(entity)}
    title = schema.table_title(entity)
    if title is not None:
        out[TITLE] = pl.col(_name(_TEXT, title))
    return read.select(values.alias(name) for name, values in out.items())


def _of_known_user(schema: LogSchema, entity: Entity, values: pl.Expr) -> pl.Expr:
    """The values; of a user, null where the row is anonymous: its request is answered without them too."""
    user = schema.entities.user
    if entity != "user" or user is None or not user.anonymous:
        return values
    return pl.when(pl.col(_name(_TEXT, user.source_column)).is_not_null()).then(values)


def _canonical_field(field: LogField) -> pl.Expr:
    return pl.col(_name(_use(field), field.source_column))


def _canonical_weights(weights: ElementWeights) -> pl.Expr:
    return pl.col(_name(WEIGHTS, weights.name))


def _canonical_sequence(sequence: Sequence) -> pl.Expr:
    return newest_first(pl.col(_name(LIST + sequence.separated_by, str(sequence.column))), sequence)


def key_and_time(schema: LogSchema, read: pl.DataFrame, entity: Literal["user", "item"]) -> pl.DataFrame:
    """``key`` and ``micros`` of rows of the log, from :func:`read_columns`."""
    key: EntityKey | None = getattr(schema.entities, entity)
    assert key is not None
    return read.select(pl.col(_name(_TEXT, key.source_column)).alias("key"), pl.col(_MICROS).alias("micros"))


def violations(rules: tuple[Rule, ...], *, as_of: datetime | None) -> list[pl.Expr]:
    """One boolean expression per row rule over :func:`read_columns`, named by :func:`broken`. Duplicates need the whole log
    and keys without a row of their side table need that, so they are not included."""
    out: list[pl.Expr] = []
    for rule in rules:
        if rule.check in ("splittable", "duplicate", "unmatched"):
            continue
        out.append(_violation(rule, as_of).fill_null(False).alias(broken(rule)))
    return out


def _violation(rule: Rule, as_of: datetime | None) -> pl.Expr:
    def read(use: str) -> pl.Expr:
        return pl.col(_name(use, rule.source))

    value = read(_LABEL if rule.column == LABEL else _NUMBER)
    if rule.separator is not None:
        return _list_violation(rule)
    if rule.check in WEIGHT_CHECKS:
        return pl.col(_name(rule.check, rule.column))
    if rule.check == "missing":
        return read(_MISSING)
    if rule.check == "number":
        return value.is_null() & ~read(_MISSING)
    if rule.check == "binary":
        return ~value.is_in([0.0, 1.0])
    if rule.check == "boolean":
        return read(_TRUTH).is_null() & ~read(_MISSING)
    if rule.check == "minimum":
        return value < rule.bound
    if rule.check == "maximum":
        return value > rule.bound
    if rule.check == "text":
        return read(WRONG)
    if rule.check == "allowed":
        return ~read(_TEXT).is_in(list(rule.allowed or ()))
    if rule.check == "inexact":
        return read(_INEXACT)
    if rule.check == "zoneless":
        return pl.col(_ZONELESS)
    if rule.check == "vector":
        vector = read(_VECTOR)
        finite = vector.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        invalid = (vector.list.len() != int(rule.bound or 0)) | ~finite
        return invalid | (vector.is_null() & ~read(_MISSING))
    if rule.check == "time":
        return ~pl.col(_READABLE)
    if rule.check == "window":
        return pl.col(_READABLE) & pl.col(_MICROS).is_null()
    return pl.col(_MICROS) > _microseconds(as_of) if as_of is not None else pl.lit(False)  # rule.check == "future"


def _list_violation(rule: Rule) -> pl.Expr:
    """Of a rule on the elements of a list."""
    lists = pl.col(_name(f"{LIST}{rule.separator}", rule.source))
    if rule.check == "text":
        return pl.col(_name(f"{WRONG}{rule.separator}", rule.source))
    if rule.check == "separator":
        return pl.col(_name(f"{SPLIT}{rule.separator}", rule.source))
    if rule.check == "allowed":
        return ~lists.list.eval(pl.element().is_in(list(rule.allowed or ()))).list.all()
    if rule.check == "length":
        return lists.list.len() > int(rule.bound or 0)
    return lists.list.len().fill_null(0) == 0  # rule.check == "missing"


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _name(use: str, column: str) -> str:
    return f"{use} {column}"


def _uses(schema: LogSchema) -> Iterator[tuple[str, str]]:
    """The uses of every source column."""
    yield _LABEL, schema.label.column
    ids = [entity for entity in (schema.entities.user, schema.entities.item) if entity is not None]
    yield from ((_TEXT, entity.source_column) for entity in ids)
    if schema.logged_title is not None:
        yield _TEXT, schema.logged_title
    yield from _uses_of(schema.logged_fields, schema.logged_vectors, schema.logged_sequences)
    yield from ((_NUMBER, column) for column in extra_columns(schema).values())


def _uses_of(
    fields: Iterable[LogField], vectors: Iterable[Vector], sequences: Iterable[Sequence]
) -> Iterator[tuple[str, str]]:
    for field in fields:
        if field.derived is None:
            yield _use(field), field.source_column
    yield from ((LIST + sequence.separated_by, str(sequence.column)) for sequence in sequences)
    yield from ((_VECTOR, vector.source_column) for vector in vectors)


def _use(field: LogField) -> str:
    if field.kind == "list":
        return LIST + field.separated_by
    return {"numeric": _NUMBER, "boolean": _TRUTH}.get(field.kind, _TEXT)


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _words(values: pa.Array) -> Iterator[tuple[str, pl.Series]]:
    text = spelled(values)
    invalid = pl.select(text_is_wrong(pl.lit(text))).to_series()
    inexact = pl.repeat(False, len(values), eager=True)
    if pa.types.is_floating(values.type):
        size = as_series(values.cast(pa.float64())).abs()
        invalid |= size.is_infinite()
        inexact = size >= INEXACT_FROM[values.type.bit_width]
    yield from ((_TEXT, text), (WRONG, invalid), (_INEXACT, inexact))


def _label(values: pa.Array) -> pl.Series:
    parsed = numbers(values)
    if not holds_text(values.type):
        return parsed
    text = texts(values).str.strip_chars(SPACE).str.to_lowercase()
    return pl.select(pl.when(text == "true").then(1.0).when(text == "false").then(0.0).otherwise(parsed)).to_series()


_READERS: dict[str, Callable[[pa.Array], Iterable[tuple[str, pl.Series]]]] = {
    _TEXT: _words,
    _TRUTH: lambda values: [(_TRUTH, truths(values))],
    _NUMBER: lambda values: [(_NUMBER, numbers(values))],
    _LABEL: lambda values: [(_LABEL, _label(values))],
    _VECTOR: lambda values: [(_VECTOR, read_vectors(values))],
}


def log_times(schema: LogSchema, values: pa.Array) -> Instants:
    """The time column of a log, read by the ``format`` of its schema."""
    return times_of(schema.time, values)


def times_of(time: TimeColumn, values: pa.Array) -> Instants:
    """The values of a time column, read by its ``format`` and ``zone``."""
    kind, zone = time.format, zone_named(time.zone or "UTC")
    if kind == "datetime" or is_time(values.type):  # the file may have more specific types than the schema
        return instants(values, zone)
    if kind == "yymmddhh":
        digits = spelled(values).str.strip_chars(SPACE).str.zfill(8)
        # Minutes are added because a time of day cannot be read from the hour alone.
        local = (digits + "00").str.strptime(pl.Datetime("us"), "%y%m%d%H%M", strict=False).cast(pl.Int64)
        return Instants(localized(local, zone), local.is_not_null())
    unit = _MICROSECONDS[kind]
    number = numbers(values)
    if pa.types.is_integer(values.type):  # exact, without conversion to float
        farthest = 2**62 // unit
        signed = _signed(values.type)
        counts = as_series(values).cast(pl.Int64 if signed else pl.UInt64)  # a narrow type cannot represent the bounds
        micros = counts.clip(-farthest if signed else 0, farthest).cast(pl.Int64) * unit
    else:
        micros = (number * unit).clip(-(2.0**62), 2.0**62).round().cast(pl.Int64)
    return Instants(micros, pl.repeat(False, len(values), eager=True))


def _signed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_signed_integer(kind))
