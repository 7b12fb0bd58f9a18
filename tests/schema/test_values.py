"""One value has one spelling, whatever type holds it, one by one and in arrays."""

from __future__ import annotations

import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schema.arrow_values import EVERY, KINDS, UUIDS, Made
from thinktwice.schema.limits import is_inexact
from thinktwice.schema.values import can_spell, spell, spelled

#: The table of the module, frozen: another spelling would make every value of a deployed model unknown.
SPELLINGS: list[tuple[Any, str | None]] = [
    (None, None), ("", None), (b"", None), (float("nan"), None), (np.float32("nan"), None), (Decimal("nan"), None), (np.datetime64("nat"), None),
    ("a b", "a b"), ("42.0", "42.0"), ("-0", "-0"), (np.str_("x"), "x"),
    (True, "true"), (np.False_, "false"),
    (42, "42"), (42.0, "42"), (Decimal("42.00"), "42"), (Decimal("4.2E+1"), "42"), (np.uint8(42), "42"), (np.float32(42), "42"), (np.float16(42), "42"),
    (-0.0, "0"), (Decimal("-0.00"), "0"), (10**30, "1" + "0" * 30), (1e23, "1" + "0" * 23), (2**63, "9223372036854775808"),
    (1_700_000_000_000_003_000.0, "1700000000000003000"), (np.float32(1e11), "100000000000"), (Decimal(12345678901234567890123), "12345678901234567890123"),
    (0.2, "0.2"), (np.float32(0.2), "0.2"), (np.float16(0.2), "0.2"), (float(np.float32(0.2)), "0.20000000298023224"), (Decimal("0.20"), "0.2"),
    (1e-5, "0.00001"), (Decimal("0.00001"), "0.00001"), (9.99e-6, "9.99e-6"), (np.float32(9.99e-6), "9.99e-6"), (Decimal("0.00000999"), "9.99e-6"),
    (1.5e-7, "1.5e-7"), (-1e-9, "-1e-9"), (5e-324, "5e-324"), (Decimal("1E-30"), "1e-30"), (123456789.125, "123456789.125"),
    (b"p1", "p1"), ("ü".encode(), "ü"), (b"\xff\x00", "\\xff00"), (bytearray(b"a"), "a"), (np.bytes_(b"a"), "a"),
    (date(2024, 3, 1), "2024-03-01"), (datetime(2024, 3, 1, 10), "2024-03-01T10:00:00"), (datetime(2024, 3, 1, 10, 0, 0, 500_000), "2024-03-01T10:00:00.5"),
    (datetime(2024, 3, 1, 10, tzinfo=timezone(timedelta(hours=9))), "2024-03-01T01:00:00Z"),
    (np.datetime64("2024-03-01T10:00:00.500"), "2024-03-01T10:00:00.5"), (np.datetime64("2024-03-01"), "2024-03-01"),
    (time(10, 0, 0, 250_000), "10:00:00.25"), (timedelta(days=1, seconds=1.5), "86401.5"), (timedelta(seconds=-1.5), "-1.5"), (np.timedelta64(1500, "ms"), "1.5"),
    (uuid.UUID(int=255), "00000000-0000-0000-0000-0000000000ff"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SPELLINGS)))
def test_the_table(number: int) -> None:
    value, text = SPELLINGS[number]
    assert spell(value) == text


@settings(max_examples=600, deadline=None)
@given(EVERY | UUIDS)
def test_an_array_is_spelled_like_its_values(made: Made) -> None:
    array, values = made
    assert can_spell(array.type)
    assert spelled(array).to_list() == [spell(value) for value in values]
    assert spelled(pa.chunked_array([array, array])).to_list() == 2 * [spell(value) for value in values]


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_whole_numbers_of_all_types_are_one(value: int) -> None:
    own: list[Any] = [
        value,
        str(value),
        float(value),
        Decimal(value),
        Decimal(f"{value}.00"),
        np.float64(value),
        np.int64(value),
    ]
    if abs(value) < 2**24:
        own += [np.float32(value), np.int32(value)]
    if abs(value) < 2**11:
        own += [np.float16(value), np.int16(value)]
    assert {spell(v) for v in own} == {str(value)}


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_spelled_like_the_number_that_people_write(value: float) -> None:
    narrow = np.float32(value)
    text = spell(narrow)
    assert text is not None and np.float32(float(text)) == narrow
    assert text == spell(float(str(narrow))), "the float64 with the same digits, as JSON would bring it"


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_different_numbers_have_different_spellings(a: float, b: float) -> None:
    if a != b:
        assert spell(a) != spell(b)
    text = spell(a)
    assert text is not None and float(text) == a


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, object(), 1j, pa.scalar(1)])
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be an id or a category"):
        spell(value)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.struct([("a", pa.int8())]),
        pa.map_(pa.string(), pa.string()),
        pa.month_day_nano_interval(),
    ],
)
def test_arrays_that_hold_no_values_are_refused(kind: pa.DataType) -> None:
    assert not can_spell(kind)
    with pytest.raises(TypeError, match="cannot be ids or categories"):
        spelled(pa.array([], kind))


def test_every_plain_type_is_read() -> None:
    assert all(can_spell(kind) for kind, _ in KINDS.values())
    assert can_spell(pa.dictionary(pa.int8(), pa.string())) and not can_spell(
        pa.dictionary(pa.int8(), pa.list_(pa.string()))
    )
    assert spelled(pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))).to_list() == [
        "true",
        "false",
        None,
    ]


def test_text_that_is_not_utf8_in_a_column_of_text_is_spelled_as_bytes() -> None:
    raw = [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xffa")]
    assert spelled(pa.Array.from_buffers(pa.string(), 2, raw)).to_list() == ["\\xff", "a"]


def test_floats_that_stand_for_several_whole_numbers() -> None:
    assert [is_inexact(v) for v in (2.0**53, -(2.0**53), 2.0**53 - 1, 2**60, "x", None, True)] == [True, True] + [
        False
    ] * 5
    assert is_inexact(np.float32(2**24)) and not is_inexact(np.float32(2**24 - 1))
    assert is_inexact(np.float16(2048)) and not is_inexact(np.float16(2047))
