"""Reads the source columns of a raw log into canonical columns, and marks which rule each row breaks.

Everything here is one polars selection over a chunk of rows: no Python loop sees a row.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from thinktwice.schema.log import EVENT_TIME, LABEL, ROW_ID, LogSchema
from thinktwice.validate.rules import EARLIEST_US, LATEST_US, NUMBER, Rule

SOURCE_ROW = "source_row"
TITLE = "title"
PROPENSITY = "propensity"
TRUTH = "truth"

_WHOLE = 2.0**53  # floats up to here hold every integer
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def broken(rule: Rule) -> str:
    """Name of the boolean column that says whether a row breaks ``rule``. No field name can start with '!'."""
    return f"!{rule.id}"


def event_time(schema: LogSchema, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    """Microseconds since the epoch as int64; null where the time cannot be read or lies outside 1970 .. 2100."""
    return _times(schema, dtypes)[1]


def canonical(schema: LogSchema, dtypes: dict[str, pl.DataType]) -> dict[str, pl.Expr]:
    """The columns of a clean log in their order, each as an expression over the raw columns.

    Types: row_id and categoricals string, event_time datetime[us, UTC], label int8, numbers float64, vectors list of float32.
    """
    micros = event_time(schema, dtypes)
    time = micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    out: dict[str, pl.Expr] = {ROW_ID: pl.col(ROW_ID), EVENT_TIME: time, LABEL: _label(schema, dtypes)}
    for entity in (schema.entities.user, schema.entities.item):
        if entity is not None:
            out[entity.key] = _category(entity.source_column, dtypes)
    for field in schema.fields:
        if field.derived == "hour":
            out[field.name] = time.dt.hour().cast(pl.String)
        elif field.derived == "weekday":  # "0" is Monday
            out[field.name] = (time.dt.weekday() - 1).cast(pl.String)
        elif field.kind == "numeric":
            out[field.name] = _number(field.source_column, dtypes)
        else:
            out[field.name] = _category(field.source_column, dtypes)
    for vector in schema.vectors:
        out[vector.name] = _vector(vector.source_column, dtypes)
    item = schema.entities.item
    if item is not None and item.title is not None:
        out[TITLE] = _category(item.title, dtypes)
    for name, column in ((PROPENSITY, schema.propensity), (TRUTH, schema.truth)):
        if column is not None:
            out[name] = _number(column, dtypes)
    return {name: expression.alias(name) for name, expression in out.items()}


def clean_columns(schema: LogSchema) -> list[str]:
    """Names of the columns of a clean log, in order."""
    keys = [entity.key for entity in (schema.entities.user, schema.entities.item) if entity is not None]
    out = [ROW_ID, EVENT_TIME, LABEL, *keys, *(f.name for f in schema.fields), *(v.name for v in schema.vectors)]
    if schema.entities.item is not None and schema.entities.item.title is not None:
        out.append(TITLE)
    return out + [
        name for name, column in ((PROPENSITY, schema.propensity), (TRUTH, schema.truth)) if column is not None
    ]


def violations(
    schema: LogSchema, rules: tuple[Rule, ...], dtypes: dict[str, pl.DataType], *, as_of: datetime | None
) -> list[pl.Expr]:
    """One boolean expression per row rule, named by :func:`broken`. Duplicates need the whole log and are not here."""
    out: list[pl.Expr] = []
    for rule in rules:
        if rule.check in ("splittable", "duplicate"):
            continue
        out.append(_violation(schema, rule, dtypes, as_of).fill_null(False).alias(broken(rule)))
    return out


def _violation(schema: LogSchema, rule: Rule, dtypes: dict[str, pl.DataType], as_of: datetime | None) -> pl.Expr:
    text = _present(rule.source, dtypes)
    if rule.check == "missing":
        return text.is_null()
    if rule.check == "number":
        return text.is_not_null() & _number(rule.source, dtypes).is_null()
    if rule.check == "binary":
        return ~_number(rule.source, dtypes).is_in([0.0, 1.0])
    if rule.check == "minimum":
        return _number(rule.source, dtypes) < rule.bound
    if rule.check == "maximum":
        return _number(rule.source, dtypes) > rule.bound
    if rule.check == "allowed":
        return ~_category(rule.source, dtypes).is_in(list(rule.allowed or ()))
    if rule.check == "vector":
        values = _vector(rule.source, dtypes)
        numbers = values.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        wrong = (values.list.len() != int(rule.bound or 0)) | ~numbers
        return wrong | (text.is_not_null() & values.is_null())
    readable, micros = _times(schema, dtypes)
    if rule.check == "time":
        return ~readable
    if rule.check == "window":
        return readable & micros.is_null()
    return micros > _microseconds(as_of) if as_of is not None else pl.lit(False)  # rule.check == "future"


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _present(column: str, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    """The raw value, null where it is missing: empty text and NaN are how files and pandas write "nothing"."""
    value = pl.col(column)
    dtype = dtypes[column]
    if isinstance(dtype, pl.Categorical | pl.Enum):
        value, dtype = value.cast(pl.String), pl.String()
    if dtype == pl.String:
        return pl.when(value.str.len_bytes() > 0).then(value)
    return value.fill_nan(None) if dtype.is_float() else value


def _category(column: str, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    value = _present(column, dtypes)
    if dtypes[column].is_float():  # 42.0 is the 42 of a column that once met a null
        value = value.cast(pl.Float64)
        whole = (value == value.round()) & (value.abs() < _WHOLE)
        return pl.when(whole).then(value.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(value.cast(pl.String))
    if dtypes[column] == pl.Binary:
        return value.bin.encode("hex")
    return value.cast(pl.String)


def _number(column: str, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    value = _present(column, dtypes)
    if dtypes[column] == pl.String or isinstance(dtypes[column], pl.Categorical | pl.Enum):
        text = value.str.strip_chars()
        value = pl.when(text.str.contains(NUMBER)).then(text).cast(pl.Float64, strict=False)
    elif dtypes[column].is_temporal() or dtypes[column] == pl.Binary:
        return pl.lit(None, dtype=pl.Float64)
    else:
        value = value.cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value)


def _label(schema: LogSchema, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    value = _number(schema.label.column, dtypes)
    if schema.label.threshold is not None:
        return (value >= schema.label.threshold).cast(pl.Int8)
    return pl.when(value.is_in([0.0, 1.0])).then(value).cast(pl.Int8)


def _vector(column: str, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    value = pl.col(column)
    if dtypes[column] == pl.String:
        inner = _present(column, dtypes).str.strip_chars("[] ")
        value = inner.str.split(",").list.eval(pl.element().str.strip_chars().cast(pl.Float32, strict=False))
    elif isinstance(dtypes[column], pl.Array):
        value = value.arr.to_list()
    return value.cast(pl.List(pl.Float32), strict=False)


def _times(schema: LogSchema, dtypes: dict[str, pl.DataType]) -> tuple[pl.Expr, pl.Expr]:
    """(time can be read, microseconds or null where unreadable or outside the window)."""
    kind = schema.time.format
    column = schema.time.column
    if column is None:  # format "order": one second a row
        micros = pl.col(SOURCE_ROW).cast(pl.Int64) * 1_000_000
        return pl.lit(True), micros
    if kind == "datetime":
        moment = _datetime(column, dtypes)
    elif kind == "yymmddhh":
        digits = _category(column, dtypes).str.strip_chars().str.zfill(8)
        # Minutes are added because a time of day cannot be read from the hour alone.
        moment = (digits + "00").str.strptime(pl.Datetime("us"), "%y%m%d%H%M", strict=False)
    elif dtypes[column].is_temporal():
        moment = _datetime(column, dtypes)  # the file is better typed than the schema says
    else:
        return _unix(column, dtypes, _MICROSECONDS[kind])
    micros = moment.cast(pl.Int64)
    return moment.is_not_null(), pl.when(micros.is_between(EARLIEST_US, LATEST_US)).then(micros)


def _unix(column: str, dtypes: dict[str, pl.DataType], unit: int) -> tuple[pl.Expr, pl.Expr]:
    number = _number(column, dtypes)
    inside = number.is_between(EARLIEST_US / unit, LATEST_US / unit)
    if dtypes[column].is_integer():  # exact, without the detour through floats
        micros = pl.when(inside).then(pl.col(column)).cast(pl.Int64, strict=False) * unit
    else:
        micros = (pl.when(inside).then(number) * unit).round().cast(pl.Int64, strict=False)
    return number.is_not_null(), micros


def _datetime(column: str, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    """A moment without zone, in UTC. Text is ISO 8601; without a zone it is UTC."""
    dtype = dtypes[column]
    if isinstance(dtype, pl.Datetime):
        value = pl.col(column).cast(pl.Datetime("us", dtype.time_zone))
        return value.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if dtype.time_zone else value
    if dtype == pl.Date:
        return pl.col(column).cast(pl.Datetime("us"))
    if dtype != pl.String:
        return pl.lit(None, dtype=pl.Datetime("us"))
    text = pl.col(column).str.strip_chars().str.replace(r"^(\d{4}-\d{2}-\d{2})T", "$1 ").str.replace(r"[zZ]$", "+00:00")
    zoned = text.str.strptime(pl.Datetime("us", "UTC"), "%Y-%m-%d %H:%M:%S%.f%:z", strict=False).dt.replace_time_zone(
        None
    )
    plain = [
        text.str.strptime(pl.Datetime("us"), shape, strict=False)
        for shape in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
    ]
    return pl.coalesce([*plain, zoned, text.str.strptime(pl.Date, "%Y-%m-%d", strict=False).cast(pl.Datetime("us"))])
