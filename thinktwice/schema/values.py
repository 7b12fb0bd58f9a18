"""Spelling of ids and categories of every type in a log, a feature store, a request or Python.

=====================  ==========================================================================================
value                  its spelling
=====================  ==========================================================================================
missing                none: null, NaN, the empty text and empty bytes
text                   as it is
truth value            ``true``, ``false``
whole number           its digits, of whatever type and size: 42, 42.0, Decimal("42.00") and float32 42 are ``42``
other number           the fewest digits that its own type distinguishes (float32 0.2 is ``0.2``), decimals exactly, without
                       zeros at the end; below 0.00001 with an exponent: ``1.5e-7``
bytes                  the text that they are in UTF-8; other bytes ``\\x`` and two lower-case hex digits each
date                   ``2024-03-01``
timestamp              ``2024-03-01T10:00:00.5``, without zeros at the end of the fraction; one with a zone in UTC with ``Z``
time of day            ``10:00:00.5``
duration               its seconds, spelled as a number
UUID                   ``8-4-4-4-12`` lower-case hex digits
dictionary             as its values
=====================  ==========================================================================================

:func:`spell` spells one Python or numpy value, :func:`spelled` a whole Arrow array. Both follow this table; a property test
compares them over all types.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.schema.limits import INEXACT_FROM

_SMALL = 1e-5  # smaller numbers are spelled with an exponent
_MOMENT = "%Y-%m-%dT%H:%M:%S%.f"
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def spell(value: Any) -> str | None:
    """The spelling of one value, None for a missing one.

    Raises:
        TypeError: a value of this type is neither an id nor a category.
    """
    if type(value) is str:
        return value or None
    if value is None:
        return None
    for kind, rule in _SCALARS:
        if isinstance(value, kind):
            return rule(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot be an id or a category")


def _spell_float(value: Any) -> str | None:
    if value != value:
        return None
    # float64 is a float whose repr names its type; the others print the fewest digits that their width distinguishes.
    return _spell_digits(float.__repr__(value) if isinstance(value, float) else str(value))


def _spell_digits(text: str) -> str:
    """A number as written by Python, numpy or Arrow, in the form of this module."""
    if "e" not in text and "E" not in text:
        if "." in text:
            text = text.rstrip("0").rstrip(".")
        if not text.startswith(("0.00000", "-0.00000")):
            return "0" if text == "-0" else text
    number = Decimal(text)
    if not number.is_finite():
        return text
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    written = "".join(map(str, digits)).rstrip("0")
    if not written:
        return "0"
    exponent += len(digits) - len(written)
    minus, size = "-" if sign else "", len(written) + exponent  # number of digits before the point
    if exponent >= 0:
        return minus + written + "0" * exponent
    if size > 0:
        return f"{minus}{written[:size]}.{written[size:]}"
    if size > -5:
        return f"{minus}0.{'0' * -size}{written}"
    return f"{minus}{written[0]}{'.' if written[1:] else ''}{written[1:]}e{size - 1}"


def _spell_bytes(value: bytes) -> str | None:
    try:
        return value.decode("utf-8") or None
    except UnicodeDecodeError:
        return "\\x" + value.hex()


def _spell_datetime(value: datetime) -> str:
    zoned = value.tzinfo is not None
    moment = value.astimezone(timezone.utc) if zoned else value
    return _trim(moment.strftime("%Y-%m-%dT%H:%M:%S.%f").zfill(26)) + ("Z" if zoned else "")


def _spell_time(value: time) -> str:
    return _trim(value.strftime("%H:%M:%S.%f"))


def _spell_datetime64(value: np.datetime64) -> str | None:
    if np.isnat(value):
        return None
    unit = np.datetime_data(value)[0]
    return str(value) if unit in ("Y", "M", "W", "D") else _trim(str(value.astype(f"datetime64[{_finer(unit)}]")))


def _spell_timedelta64(value: np.timedelta64) -> str | None:
    if np.isnat(value):
        return None
    unit = np.datetime_data(value)[0]
    fine = _finer(unit)
    return _seconds(int(value.astype(f"timedelta64[{fine}]").astype(np.int64)), _PER_SECOND[fine])


def _finer(unit: str) -> str:
    return unit if unit in _PER_SECOND else "s"


def _seconds(count: int, per_second: int) -> str:
    seconds, fraction = divmod(abs(count), per_second)
    digits = f"{seconds}.{fraction:0{len(str(per_second)) - 1}d}" if per_second > 1 else str(seconds)
    return _spell_digits(f"-{digits}" if count < 0 else digits)


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


_Rule = Callable[[Any], str | None]
_SCALARS: tuple[tuple[type | tuple[type, ...], _Rule], ...] = (
    (str, lambda v: str(v) or None),
    ((bool, np.bool_), lambda v: "true" if v else "false"),
    (np.timedelta64, _spell_timedelta64),  # numpy calls it an integer
    ((int, np.integer), lambda v: str(int(v))),
    ((float, np.floating), _spell_float),
    (Decimal, lambda v: _spell_digits(str(v)) if v.is_finite() else _spell_float(float(v))),
    ((bytes, bytearray, memoryview), lambda v: _spell_bytes(bytes(v))),
    (datetime, _spell_datetime),  # before date, whose subclass it is
    (date, lambda v: v.isoformat()),
    (time, _spell_time),
    (timedelta, lambda v: _seconds((v.days * 86_400 + v.seconds) * 10**6 + v.microseconds, 10**6)),
    (np.datetime64, _spell_datetime64),
    (uuid.UUID, str),
)


def can_spell(kind: pa.DataType) -> bool:
    """Whether :func:`spelled` reads arrays of this type: every type that is not nested, except calendar intervals."""
    if isinstance(kind, pa.BaseExtensionType):
        return can_spell(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return can_spell(kind.value_type)
    return any(test(kind) for test, _ in _ARRAYS)


def spelled(values: pa.Array | pa.ChunkedArray) -> pl.Series:
    """The spellings of an array, null for missing values.

    Raises:
        TypeError: values of this type are neither ids nor categories (see :func:`can_spell`).
    """
    if isinstance(values, pa.ChunkedArray):
        values = one_array(values)
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        if kind.extension_name == "arrow.uuid":
            return _one_by_one(values.storage, lambda v: str(uuid.UUID(bytes=v)))
        if kind.extension_name == "arrow.bool8":
            return spelled(values.storage.cast(pa.bool_()))
        return spelled(values.storage)
    if pa.types.is_dictionary(kind):
        words = spelled(values.dictionary)
        return words.gather(as_series(values.indices).cast(pl.Int64))
    for test, rule in _ARRAYS:
        if test(kind):
            return rule(values)
    raise TypeError(f"values of type {kind} cannot be ids or categories")


def one_array(values: pa.ChunkedArray) -> pa.Array:
    """The chunks as one array. Dictionaries of float16 are decoded first: joining them corrupts the numbers (pyarrow
    26)."""
    kind = values.type
    if pa.types.is_dictionary(kind) and pa.types.is_float16(kind.value_type):
        return pa.chunked_array(
            [chunk.dictionary_decode() for chunk in values.chunks], kind.value_type
        ).combine_chunks()
    return values.combine_chunks()


def texts(values: pa.Array) -> pl.Series:
    """Text, or bytes that are UTF-8, as text; other bytes as :func:`spell` writes them, missing values null."""
    raw = values.cast(pa.large_binary())
    try:
        text = as_series(raw.cast(pa.large_string()))  # checks that it is UTF-8
    except pa.ArrowInvalid:
        return _one_by_one(raw, spell)
    return pl.select(pl.when(text.str.len_bytes() > 0).then(text)).to_series()


def as_series(values: pa.Array | pa.ChunkedArray) -> pl.Series:
    """An array as a polars series; polars must support its type. Lists of a fixed size become lists: polars does not read every part
    of such an array with missing ones."""
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    series = pl.from_arrow(values)
    assert isinstance(series, pl.Series)
    return series


def _one_by_one(values: pa.Array, rule: Callable[[Any], str | None]) -> pl.Series:
    """Apply a function of single values, called once for each distinct value."""
    code = values.dictionary_encode()
    words = pl.Series([None if v is None else rule(v) for v in code.dictionary.to_pylist()], dtype=pl.String)
    return words.gather(as_series(code.indices).cast(pl.Int64))


def _integers(values: pa.Array) -> pl.Series:
    return as_series(values).cast(pl.String)


def _floats(values: pa.Array) -> pl.Series:
    kind = np.dtype(values.type.to_pandas_dtype())
    if kind == np.float16:
        return _floats_one_by_one(as_series(values.cast(pa.float32())).fill_nan(None), np.float16)
    number = as_series(values).fill_nan(None)
    exact = INEXACT_FROM[8 * kind.itemsize]
    integral = (number == number.round()) & (number.abs() < exact)
    # In this range polars writes the same text; larger integers and small numbers are rare.
    direct = integral | ((number.abs() >= _SMALL) & (number.abs() < exact))
    text = pl.select(
        pl.when(integral)
        .then(number.cast(pl.Int64, strict=False).cast(pl.String))
        .when(direct)
        .then(number.cast(pl.String))
    ).to_series()
    slow = _floats_one_by_one(number.filter(~direct), kind.type)
    if slow.len() == slow.null_count():
        return text
    positions = direct.not_().arg_true()
    return text.scatter(positions, slow)


def _floats_one_by_one(number: pl.Series, kind: Callable[[float], Any]) -> pl.Series:
    unique = number.drop_nulls().unique()
    words = pl.Series([spell(kind(v)) for v in unique], dtype=pl.String)
    return number.replace_strict(unique, words, default=None, return_dtype=pl.String)


def _decimals(values: pa.Array) -> pl.Series:
    text = as_series(values.cast(pa.large_string()))
    pointed = text.str.contains(".", literal=True)
    plain = pl.when(pointed).then(text.str.strip_chars_end("0").str.strip_chars_end(".")).otherwise(text)
    rewritten = text.str.contains("E", literal=True) | text.str.contains(r"^-?0\.00000") | (text == "-0")
    if not rewritten.any():
        return pl.select(plain).to_series()
    unique = text.filter(rewritten).unique()
    words = pl.Series([_spell_digits(t) for t in unique], dtype=pl.String)
    return pl.select(
        pl.when(rewritten)
        .then(text.replace_strict(unique, words, default=None, return_dtype=pl.String))
        .otherwise(plain)
    ).to_series()


def _timestamps(values: pa.Array) -> pl.Series:
    zoned = values.type.tz is not None
    moment = as_series(values.cast(pa.timestamp(values.type.unit)))  # in UTC if it has a zone
    text = moment.dt.to_string(_MOMENT)
    pointed = text.str.contains(".", literal=True)
    text = pl.select(
        pl.when(pointed).then(text.str.strip_chars_end("0").str.strip_chars_end(".")).otherwise(text)
    ).to_series()
    return text + "Z" if zoned else text


def _times(values: pa.Array) -> pl.Series:
    per_second = _PER_SECOND[values.type.unit]
    numbers = values.view(pa.int32() if pa.types.is_time32(values.type) else pa.int64())

    def rule(count: int) -> str:
        seconds, fraction = divmod(count, per_second)
        clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        return _trim(f"{clock}.{fraction:0{len(str(per_second)) - 1}d}") if per_second > 1 else clock

    return _one_by_one(numbers, rule)


def _durations(values: pa.Array) -> pl.Series:
    per_second = _PER_SECOND[values.type.unit]
    return _one_by_one(values.view(pa.int64()), lambda count: _seconds(count, per_second))


_ARRAYS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], pl.Series]], ...] = (
    (lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t), texts),
    (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_binary_view(t), texts),
    (pa.types.is_fixed_size_binary, texts),
    (pa.types.is_null, lambda values: pl.Series([None] * len(values), dtype=pl.String)),
    (pa.types.is_boolean, _integers),
    (pa.types.is_integer, _integers),
    (pa.types.is_floating, _floats),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_date, lambda values: as_series(values.cast(pa.date32())).dt.to_string("%Y-%m-%d")),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_time, _times),
    (pa.types.is_duration, _durations),
)
