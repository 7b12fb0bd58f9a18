"""Values of every plain Arrow type, each with the Python or numpy value that it is."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

Made = tuple[pa.Array, list[Any]]
Values = Callable[[pa.DataType], st.SearchStrategy[Any]]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["42", "42.0", "-0", "1e3", "", "é", "e\u0301", "true", "inf", "nan", " 7 ", "0.2", "+.5e-3", "\x00"]
)
BYTES = st.binary(max_size=8) | TEXT.map(lambda text: text.encode())
ODD_FLOATS = [
    0.2,
    42.0,
    -0.0,
    1e-7,
    1.5e-5,
    1e-5,
    9.99e-6,
    1e16,
    1.7e18,
    2.0**53,
    2.0**24,
    2049.0,
    123456.789,
    5e-324,
    1e300,
    -1e22,
]


def _decimals(digits: int, scale: int) -> st.SearchStrategy[Decimal]:
    most = 10**digits - 1
    return st.integers(-most, most).map(lambda n: Decimal(n).scaleb(-scale, context=_EXACT))


_EXACT = __import__("decimal").Context(prec=100)


def _floats(bits: int) -> st.SearchStrategy[float]:
    fitting = [v for v in ODD_FLOATS if bits == 64 or abs(v) < (6e4 if bits == 16 else 3e38)]
    narrow = st.sampled_from(fitting).map(lambda v: float({16: np.float16, 32: np.float32, 64: np.float64}[bits](v)))
    return st.floats(width=bits) | narrow | st.integers(-3000, 3000).map(float)  # type: ignore[call-overload]


def _integers(kind: pa.DataType) -> st.SearchStrategy[int]:
    bits = kind.bit_width
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if pa.types.is_signed_integer(kind) else (0, 2**bits - 1)
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1, 42])


DATES = st.dates(date(1970, 1, 1), date(2099, 12, 31))
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30))
NUMPY = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): float}


def _cut(unit: str) -> Callable[[datetime], datetime]:
    keep = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1}[unit]
    return lambda moment: moment.replace(microsecond=moment.microsecond // keep * keep)


KINDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    **{str(t): (t, _integers(t)) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(t): (t, _integers(t)) for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    "float16": (pa.float16(), _floats(16)),
    "float32": (pa.float32(), _floats(32)),
    "float64": (pa.float64(), _floats(64)),
    "bool": (pa.bool_(), st.booleans()),
    "decimal32": (pa.decimal32(9, 4), _decimals(9, 4)),
    "decimal64": (pa.decimal64(18, 2), _decimals(18, 2)),
    "decimal128": (pa.decimal128(38, 9), _decimals(38, 9)),
    "decimal128 whole": (pa.decimal128(38, 0), _decimals(38, 0)),
    "decimal128 small": (pa.decimal128(12, 12), _decimals(12, 12)),
    "decimal256": (pa.decimal256(60, 20), _decimals(60, 20)),
    "string": (pa.string(), TEXT),
    "large_string": (pa.large_string(), TEXT),
    "string_view": (pa.string_view(), TEXT),
    "binary": (pa.binary(), BYTES),
    "large_binary": (pa.large_binary(), BYTES),
    "binary_view": (pa.binary_view(), BYTES),
    "fixed binary": (pa.binary(3), st.binary(min_size=3, max_size=3) | st.sampled_from([b"abc", b"0.2", b"\xff00"])),
    "date32": (pa.date32(), DATES),
    "date64": (pa.date64(), DATES),
    **{f"timestamp {u}": (pa.timestamp(u), MOMENTS.map(_cut(u))) for u in ("s", "ms", "us", "ns")},
    **{
        f"timestamp {u} {zone}": (
            pa.timestamp(u, zone),
            MOMENTS.map(_cut(u)).map(lambda moment: moment.replace(tzinfo=timezone.utc)),
        )
        for u, zone in (("s", "UTC"), ("us", "Asia/Tokyo"), ("ns", "+02:00"))
    },
    "time32": (pa.time32("ms"), st.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000))),
    "time64": (pa.time64("us"), st.times()),
    "duration": (pa.duration("us"), st.timedeltas(timedelta(days=-9), timedelta(days=9))),
    "null": (pa.null(), st.none()),
}


def one_kind(name: str) -> st.SearchStrategy[Made]:
    """Some values of a kind as an array, sometimes of a dictionary or with an offset, and one by one."""
    kind, values = KINDS[name]

    def made(found: list[Any], form: str) -> Made:
        if form == "dictionary" and not any(word in str(kind) for word in ("null", "view", "decimal")):  # Arrow cannot
            array = pa.array(found, kind).dictionary_encode()
        elif form == "sliced":
            array = pa.array([None, *found, None], kind).slice(1, len(found))
        else:
            array = pa.array(found, kind)
        own = NUMPY.get(kind, lambda v: v)
        return array, [None if v is None else own(v) for v in found]

    some = st.lists(st.none() | values, min_size=1, max_size=12)
    return st.builds(made, some, st.sampled_from(["plain", "dictionary", "sliced"]))


EVERY = st.sampled_from(sorted(KINDS)).flatmap(one_kind)
UUIDS = st.lists(st.none() | st.uuids(), min_size=1, max_size=5).map(
    lambda ids: (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([i and i.bytes for i in ids], pa.binary(16))),
        ids,
    )
)
__all__ = ["EVERY", "KINDS", "UUIDS", "one_kind", "time", "uuid"]
