"""Values of a request: validation, parsing and JSON schema for each kind of field.

Ids, categories and numbers are read as in training (:mod:`thinktwice.schema.values`, :mod:`thinktwice.schema.numbers`), within
the same limits (:mod:`thinktwice.schema.limits`). Rules that JSON Schema cannot express have their own error kinds, see :data:`BEYOND`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainValidator, WithJsonSchema, WrapValidator

from serving.protocol.faults import custom, kind_of, shown
from thinktwice.schema import ModelField
from thinktwice.schema.limits import (
    EARLIEST_US,
    FLOAT32_LIMIT,
    INTEGERS,
    LATEST_US,
    MAX_SEQUENCE,
    MAX_TEXT,
    NUMBER_LIMIT,
    is_inexact,
    text_problem,
)
from thinktwice.schema.numbers import NUMBER, NumberRangeError, number
from thinktwice.schema.times import FORMS, TEXT, Zone, in_window, instant_of
from thinktwice.schema.truth import TRUTH_PATTERN, truth
from thinktwice.schema.values import spell

Json = dict[str, Any]
TIMES = (str, date, np.datetime64)  # values of a timestamp that are not Unix seconds
WHITE = r"[ \t\n\r\v\f]*"
END = r"(?![\s\S])"  # of the text; for Python, unlike ECMAScript, $ also matches before a newline at the end
SCALARS = ["string", "integer", "number", "boolean"]

#: Error kinds of values that are valid under the JSON schema: rules that JSON Schema cannot express, and why.
BEYOND = {
    "inexact_id": "a float from 2**53 on; JSON Schema does not tell 1e16 from 10000000000000000",
    "number_out_of_range": "the number that a text is; limits hold for numbers alone",
    "not_a_time": "a text of the right form that is not a date of the calendar",
    "time_out_of_range": "the instant that a text is; limits hold for numbers alone",
    "uneven_weights": "the number of weights is that of the elements of another key",
    "negative_weight": "the number that a text is; limits hold for numbers alone",
}

TEXT_OF_ID: Json = {
    "description": 'Integers within 64 bits; larger ones are strings. 42, 42.0 and "42" are the same.',
    "type": SCALARS,
    "minimum": INTEGERS[0],
    "maximum": INTEGERS[1],
    "maxLength": MAX_TEXT,
    "pattern": rf"^[^\u0000]*{END}",
}


def read_text(value: Any) -> str:
    """The canonical text of an id or a category, empty for a missing value."""
    if type(value) is str:
        text = value
    else:
        _refuse_inexact(value)
        try:
            text = spell(value) or ""
        except TypeError:
            raise custom("text_type", f"must be a string or a number, not {kind_of(value)}") from None
    if (problem := text_problem(text)) is not None:
        raise custom("text_value", problem)
    return text


def read_id(value: Any) -> str:
    """Like :func:`read_text`, but must not be empty."""
    if not (text := read_text(value)):
        raise custom("empty_id", "must not be empty")
    return text


def is_missing(value: Any) -> bool:
    """Whether a value is null or NaN. JSON has no NaN, but a Python caller may pass it as a missing value of a table."""
    return value is None or (isinstance(value, (float, np.floating)) and value != value)


def read_category(value: Any) -> str | None:
    """Like :func:`read_text`, None for null."""
    return None if is_missing(value) else read_text(value)


def read_truth(value: Any) -> str | None:
    """``true`` or ``false``, None for a missing value."""
    if value is True or value is False:  # the common case
        return "true" if value else "false"
    try:
        return truth(value)
    except ValueError:
        raise custom(
            "not_a_truth_value", f"must be true or false (or yes and no, 1 and 0), not {shown(value)}"
        ) from None


def read_element(value: Any) -> str:
    """One value of a sequence, empty for a missing value, which the encoder skips."""
    return "" if is_missing(value) else read_text(value)


def read_number(value: Any) -> float | None:
    """Parse a number, None for a missing value."""
    if (type(value) is float or type(value) is int) and -NUMBER_LIMIT < value < NUMBER_LIMIT:  # the common case
        return float(value)
    try:
        parsed = number(value)
    except NumberRangeError:
        limits = f"between {-NUMBER_LIMIT:g} and {NUMBER_LIMIT:g}"
        raise custom("number_out_of_range", f"must be a number {limits}") from None
    except ValueError:
        raise custom("not_a_number", f"must be a number, not {shown(value)}") from None
    return parsed


def read_float32(value: Any) -> float:
    """An entry of a vector."""
    parsed = read_number(value)
    if parsed is None and is_missing(value) and value is not None:
        raise custom("not_finite", "must be a finite number")
    if parsed is None:
        raise custom("not_a_number", f"must be a number, not {shown(value)}")
    if abs(parsed) >= FLOAT32_LIMIT:
        raise custom("number_out_of_range", "must be a number of at most 3.4e+38 in size")
    return parsed


def read_weight(value: Any) -> float:
    """A weight of an element of a list."""
    parsed = read_number(value)
    if parsed is None:
        raise custom("not_a_number", f"must be a number of at least 0, not {shown(value)}")
    if parsed < 0:
        raise custom("negative_weight", f"must be a number of at least 0, not {shown(value)}")
    return parsed


def _refuse_inexact(value: Any) -> None:
    """Refuse numbers that could be several ids. JSON parsers turn integers beyond 64 bits into floats."""
    if value is None:
        raise custom("text_type", "must be a string or a number, not null")
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        raise custom("not_finite", "must be a finite number")
    if is_inexact(value):
        raise custom(
            "inexact_id",
            f"is {value!s}, a float too large to tell integers apart: ids beyond 64 bits must be strings, "
            "smaller ones strings or integers",
        )
    if isinstance(value, int) and not INTEGERS[0] <= value <= INTEGERS[1]:
        raise custom("large_id", "is an integer of more than 64 bits: ids beyond 64 bits must be strings")


def are_plain(values: list[Any]) -> bool:
    """Whether :func:`read_id` would return all values unchanged: one fast check, which almost all lists pass."""
    try:
        joined = "\n".join(values)
    except TypeError:  # not all are texts
        return False
    return joined.isascii() and "\x00" not in joined and all(values) and max(map(len, values)) <= MAX_TEXT


def time_reader(zone: Zone) -> Callable[[Any], int | None]:
    """Returns a parser of timestamps: microseconds since the epoch, None for null."""

    def read_time(value: Any) -> int | None:
        if value is None:
            return None
        if is_missing(value):
            raise custom("not_finite", "must be a finite number")
        if isinstance(value, (bool, np.bool_)):  # logs do not accept booleans as times either
            raise custom("time_type", f"must be Unix seconds or a text, not {kind_of(value)}")
        if isinstance(value, TIMES):
            try:
                instant = instant_of(value, zone)
            except ValueError:
                raise custom(
                    "not_a_time", f"is {shown(value)}, which is not a time: give Unix seconds, or {FORMS}"
                ) from None
        else:
            seconds = read_number(value)
            if seconds is None:
                raise custom("time_type", f"must be Unix seconds or a text, not {kind_of(value)}")
            instant = round(seconds * 1_000_000)
        if not in_window(instant):
            raise custom("time_out_of_range", "must be Unix seconds or an ISO 8601 time between 1970 and 2100")
        return instant

    return read_time


Id = Annotated[str, PlainValidator(read_id), WithJsonSchema({**TEXT_OF_ID, "minLength": 1})]
Category = Annotated[
    str | None, PlainValidator(read_category), WithJsonSchema({**TEXT_OF_ID, "type": [*SCALARS, "null"]})
]
Truth = Annotated[
    str | None,
    PlainValidator(read_truth),
    WithJsonSchema(
        {
            "description": "true or false; yes and no, t and f, y and n, on and off, 1 and 0 are the same.",
            "anyOf": [
                {"type": ["boolean", "null"]},
                {"type": "number", "enum": [0, 1]},
                {"type": "string", "pattern": f"^(?:{WHITE}(?:{TRUTH_PATTERN}){WHITE})?{END}"},
            ],
        }
    ),
]
Element = Annotated[str, PlainValidator(read_element), WithJsonSchema({**TEXT_OF_ID, "type": [*SCALARS, "null"]})]
Numeric = Annotated[
    float | None,
    PlainValidator(read_number),
    WithJsonSchema(
        {
            "description": "A number; true and false are 1 and 0, a text must be a decimal number.",
            "type": ["number", "boolean", "string", "null"],
            "pattern": f"^(?:{WHITE}{NUMBER[1:-1]}{WHITE})?{END}",
            "exclusiveMinimum": -NUMBER_LIMIT,
            "exclusiveMaximum": NUMBER_LIMIT,
        }
    ),
]
Entry = Annotated[
    float,
    PlainValidator(read_float32),
    WithJsonSchema(
        {
            "type": ["number", "boolean", "string"],
            "pattern": f"^{WHITE}{NUMBER[1:-1]}{WHITE}{END}",
            "exclusiveMinimum": -FLOAT32_LIMIT,
            "exclusiveMaximum": FLOAT32_LIMIT,
        }
    ),
]

Weight = Annotated[
    float,
    PlainValidator(read_weight),
    WithJsonSchema(
        {
            "type": ["number", "boolean", "string"],
            "pattern": f"^{WHITE}{NUMBER[1:-1]}{WHITE}{END}",
            "minimum": 0,
            "exclusiveMaximum": NUMBER_LIMIT,
        }
    ),
]


def ids(most: int) -> Any:
    """The type of a list of 1 to ``most`` ids."""

    def read_ids(value: Any, one_by_one: Callable[[Any], list[str]]) -> list[str]:
        if type(value) is list and 1 <= len(value) <= most and are_plain(value):
            return value
        return one_by_one(value)

    return Annotated[list[Id], Field(min_length=1, max_length=most, fail_fast=True), WrapValidator(read_ids)]


def time_of(zone: Zone) -> Any:
    """The type of a timestamp."""
    document = {
        "description": f"Unix seconds, or text: {FORMS}; text without an offset is the time of the clocks in {zone.name}. "
        "Now when absent.",
        "type": ["number", "string", "null"],
        "minimum": EARLIEST_US / 1e6,
        "maximum": LATEST_US / 1e6,
        "pattern": f"^{WHITE}{TEXT[1:-1]}{WHITE}{END}",
    }
    return Annotated[int | None, PlainValidator(time_reader(zone)), WithJsonSchema(document)]


def type_of(field: ModelField, *, is_truth: bool = False) -> Any:
    """The type of the values of a field; ``is_truth``: of kind boolean."""
    if is_truth:
        return Truth
    if field.kind == "numeric":
        return Numeric
    if field.kind == "categorical":
        return Category
    if field.kind == "sequence":
        most = field.length if field.has_own_values else MAX_SEQUENCE  # logs accept no longer list either
        return Annotated[list[Element], Field(max_length=most, fail_fast=True)] | None
    if field.kind == "weights":
        words = f"One weight for each element of {field.of}; absent or empty: all are 1."
        return Annotated[list[Weight], Field(max_length=field.length, fail_fast=True, description=words)] | None
    return Annotated[list[Entry], Field(min_length=field.dim, max_length=field.dim, fail_fast=True)] | None
