"""Reading of numbers of every type in a log, a feature store, a request or Python, and borders of quantile bins.

=====================  ==========================================================================================
value                  the number (float64)
=====================  ==========================================================================================
missing                none: null, NaN, the empty text and empty bytes
whole number           the nearest float64
float64                itself
float32, float16       the number of its fewest digits: float32 0.2 is the float64 0.2 and not 0.20000000298
decimal                the nearest float64
truth value            1 or 0
text                   a decimal number (:data:`NUMBER`), white space around it allowed; bytes that are such a text likewise
anything else          not a number, like every number from 1e300 on
=====================  ==========================================================================================

:func:`number` reads one Python or numpy value, :func:`numbers` a whole Arrow array; a property test compares them.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.schema.limits import NUMBER_LIMIT, is_number
from thinktwice.schema.values import as_series, one_array, texts

#: Decimal text; other input that ``float`` accepts (``nan``, ``inf``, ``1_000``) is not a number in a log.
NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_NUMBER = re.compile(NUMBER)
SPACE = " \t\n\r\v\f"


class NumberRangeError(ValueError):
    """A number that is out of range."""


def number(value: Any) -> float | None:
    """The number of a value, None for a missing value.

    Raises:
        NumberRangeError: the number is out of range.
        ValueError: the value is not a number.
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes)):
        if not value:
            return None
        text = (value.decode("utf-8", "replace") if isinstance(value, bytes) else value).strip(SPACE)
        if not _NUMBER.fullmatch(text):
            raise ValueError("is not a number")
        parsed = float(text)
    elif isinstance(value, (np.float32, np.float16)):
        parsed = float(str(value))
    elif isinstance(value, (bool, int, float, np.bool_, np.floating, Decimal)) or (
        isinstance(value, np.integer) and not isinstance(value, np.timedelta64)
    ):
        if value != value:
            return None
        try:
            parsed = float(value)
        except OverflowError:
            parsed = math.inf
    else:
        raise ValueError("is not a number")
    if parsed != parsed:
        return None
    if not is_number(parsed):
        raise NumberRangeError(f"is not a number between -{NUMBER_LIMIT:g} and {NUMBER_LIMIT:g}")
    return parsed


def numbers(values: pa.Array | pa.ChunkedArray) -> pl.Series:
    """The numbers of an array as float64, null for missing values and values that are not numbers."""
    if isinstance(values, pa.ChunkedArray):
        values = one_array(values)
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        return numbers(values.storage)
    if pa.types.is_dictionary(kind):
        return numbers(values.dictionary).gather(as_series(values.indices).cast(pl.Int64))
    if pa.types.is_float16(kind):
        unique = values.dictionary_encode()
        words = pl.Series([None if v is None else float(str(np.float16(v))) for v in unique.dictionary.to_pylist()])
        parsed = words.cast(pl.Float64).gather(as_series(unique.indices).cast(pl.Int64))
    elif pa.types.is_float32(kind):
        parsed = as_series(values).cast(pl.String).cast(pl.Float64, strict=False)
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        parsed = as_series(values).cast(pl.Float64)
    elif pa.types.is_decimal(kind):
        parsed = as_series(values.cast(pa.large_string())).cast(pl.Float64, strict=False)
    elif holds_text(kind):
        text = texts(values).str.strip_chars(SPACE)
        parsed = pl.select(pl.when(text.str.contains(NUMBER)).then(text)).to_series().cast(pl.Float64, strict=False)
    else:
        return pl.Series([None] * len(values), dtype=pl.Float64)
    return pl.select(pl.when(parsed.abs() < NUMBER_LIMIT).then(parsed)).to_series()


def missing(values: pa.Array | pa.ChunkedArray) -> pl.Series:
    """Whether each value is missing: null, NaN, and the empty text or bytes."""
    if isinstance(values, pa.ChunkedArray):
        values = one_array(values)
    if isinstance(values, pa.ExtensionArray):
        return missing(values.storage)
    if pa.types.is_dictionary(values.type):
        flags = missing(values.dictionary).gather(as_series(values.indices).cast(pl.Int64))
        return flags.fill_null(True)
    nothing = values.is_null(nan_is_null=True)
    if holds_text(values.type):
        return as_series(nothing) | (as_series(values.cast(pa.large_binary())).bin.size() == 0).fill_null(True)
    return as_series(nothing)


def holds_text(kind: pa.DataType) -> bool:
    """Whether the values of a type are text, or bytes that may be text."""
    t = pa.types
    text = t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
    return (
        text or t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind) or t.is_fixed_size_binary(kind)
    )


def shortest(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The numbers with the fewest digits that float32 distinguishes: [n] -> [n]."""
    return pl.Series(values).cast(pl.String).cast(pl.Float64).to_numpy()


def borders(values: npt.NDArray[np.float64], bins: int, *, above: bool = False) -> npt.NDArray[np.float64]:
    """Inner borders of ``bins`` quantile bins of finite ``values``, ascending; fewer where values repeat.

    A border is midway between two neighbouring values: below each quantile, or ``above`` it (then also slightly above the
    largest value, if that is a quantile). So no value is on a border, and a value with a small reading error falls into
    the same bin.
    """
    if len(values) == 0:
        return np.zeros(0)
    ordered = np.sort(values)
    cuts = np.unique(np.quantile(ordered, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    if above:
        position = np.searchsorted(ordered, cuts, side="right")
        beyond = cuts + np.maximum(np.abs(cuts), 1e-6) * 1e-6
        low, high = cuts, np.where(position < len(ordered), ordered[np.minimum(position, len(ordered) - 1)], beyond)
    else:
        high = cuts[cuts > ordered[0]]
        low = ordered[np.searchsorted(ordered, high, side="left") - 1]
    middle = low + (high - low) / 2
    if above:  # between adjacent floats there is none: then the border is the value that belongs below it
        return np.where(middle < high, middle, low)
    return np.where(middle > low, middle, high)
