"""Limits of values, shared by rows of a log and requests.

A row of a log beyond one of these limits is quarantined, and a request is refused. So every value accepted in training can
be requested, and every value accepted in a request could occur in training.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

MAX_TEXT = 512  # characters (Unicode code points) of an id or a category
MAX_SEQUENCE = 1000  # values of a sequence in a raw row of a request; a schema allows 200
MAX_WEIGHT = 1e30  # of a row; weights are float32
NUMBER_LIMIT = 1e300  # numbers are strictly between minus this and this
FLOAT32_LIMIT = 2.0**128 - 2.0**103  # limit of the magnitude of a vector entry: from here on float32 rounds to infinity
#: 1970: impressions before the epoch are wrong units or broken clocks; logs with relative time start at 0.
EARLIEST_US = 0
LATEST_US = 4_102_444_800_000_000  # 2100
INTEGERS = (-(2**63), 2**64 - 1)  # limit of integers in a request: JSON readers turn larger ones into floats

#: From here on a float of that type represents several integers, so it cannot be an id: 2**53 and 2**53 + 1 are the same
#: float64.
INEXACT_FROM = {16: 2.0**11, 32: 2.0**24, 64: 2.0**53}
_BITS: dict[type, int] = {float: 64, np.float64: 64, np.float32: 32, np.float16: 16}


def text_problem(text: str) -> str | None:
    """Why a text cannot be an id or a category, None if it can."""
    if len(text) > MAX_TEXT:
        return f"has {len(text)} characters, at most {MAX_TEXT} are accepted"
    if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        return "contains a character that is not text (NUL or half of a surrogate pair)"
    return None


def text_is_wrong(text: pl.Expr) -> pl.Expr:
    """Whether :func:`text_problem` finds a problem in each text. Columns of text contain no lone surrogates."""
    return (text.str.len_chars() > MAX_TEXT) | text.str.contains("\x00", literal=True)


def is_inexact(value: Any) -> bool:
    """Whether a float represents several integers (see :data:`INEXACT_FROM`); False for values of other types."""
    bits = _BITS.get(type(value))
    return bits is not None and abs(value) >= INEXACT_FROM[bits]


def is_number(value: float | Decimal) -> bool:
    """Whether a number is within the limits; False for NaN."""
    return bool(-NUMBER_LIMIT < value < NUMBER_LIMIT)
