"""One value is one number, whatever type holds it, one by one and in arrays; and borders lie between values."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schema.arrow_values import EVERY, Made
from thinktwice.schema.limits import FLOAT32_LIMIT, NUMBER_LIMIT
from thinktwice.schema.numbers import borders, missing, number, numbers, shortest
from thinktwice.schema.values import spelled


def read(value: Any) -> float | None:
    """Null where it is no number, as arrays have it."""
    try:
        return number(value)
    except ValueError:
        return None


def is_missing(value: Any) -> bool:
    return value is None or value in ("", b"") or value != value


@settings(max_examples=600, deadline=None)
@given(EVERY)
def test_an_array_holds_the_numbers_of_its_values(made: Made) -> None:
    array, values = made
    assert numbers(array).to_list() == [read(value) for value in values]
    assert missing(array).to_list() == [is_missing(value) for value in values]
    both = pa.chunked_array([array, array])
    assert (
        numbers(both).to_list() == 2 * numbers(array).to_list()
        and missing(both).to_list() == 2 * missing(array).to_list()
    )


def test_joined_dictionaries_of_float16_hold_their_numbers() -> None:
    chunks = [pa.array([np.float16(n)], pa.float16()).dictionary_encode() for n in (1.5, 2.5, float("nan"))]
    assert numbers(pa.chunked_array(chunks)).to_list() == [1.5, 2.5, None]
    assert missing(pa.chunked_array(chunks)).to_list() == [False, False, True]
    assert spelled(pa.chunked_array(chunks)).to_list() == ["1.5", "2.5", None]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.float32(0.2), 0.2), (np.float16(0.2), 0.2), (0.2, 0.2), ("0.2", 0.2), (" +.2e0\n", 0.2), (b"0.2", 0.2), (Decimal("0.20"), 0.2),
        (True, 1.0), (np.False_, 0.0), (np.uint64(2**64 - 1), 2.0**64), (2**80, 2.0**80), (Decimal("123456789012345678.9"), 123456789012345678.9),
        (None, None), ("", None), (b"", None), (float("nan"), None), (np.float32("nan"), None), (Decimal("nan"), None),
    ],
)  # fmt: skip
def test_the_table(value: Any, found: float | None) -> None:
    assert number(value) == found


@pytest.mark.parametrize(
    "value",
    ["x", " ", "nan", "inf", "1_000", "0x1", "1,5", "\u0661", b"\xff", date(2024, 3, 1), np.timedelta64(1, "s"), [1], {},
     float("inf"), np.float32("inf"), 1e300, -1e300, "1e300", 10**400, Decimal("1e301")],
)  # fmt: skip
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        number(value)


def test_the_largest_numbers() -> None:
    below = float(np.nextafter(NUMBER_LIMIT, 0))
    assert number(below) == below and number(repr(below)) == below
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(FLOAT32_LIMIT)) and not np.isinf(np.float32(np.nextafter(FLOAT32_LIMIT, 0)))


VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.7, 1.1, -5.0, 0.0]) | st.floats(-1e6, 1e6), min_size=1, max_size=60)


@given(VALUES, st.integers(2, 40), st.booleans())
def test_no_value_lies_on_a_border(values: list[float], bins: int, above: bool) -> None:
    found = borders(np.array(values), bins, above=above)
    assert list(found) == sorted(set(found.tolist())) and len(found) < bins
    gaps = np.diff(np.unique(values))
    if len(gaps) == 0 or gaps.min() > 1e-9:
        assert not set(found.tolist()) & set(values)
    if not above:
        counts = np.bincount(np.searchsorted(found, values, side="right"), minlength=len(found) + 1)
        assert (counts > 0).all(), "every bin contains a value"


@given(st.lists(st.floats(0.0625, 1000, width=32), min_size=1, max_size=40), st.integers(2, 30))
def test_a_number_and_its_float32_fall_into_one_bin(values: list[float], bins: int) -> None:
    narrow = np.array(values, np.float32)
    written = shortest(narrow)
    assert written.tolist() == [float(str(v)) for v in narrow]
    for above in (False, True):
        found = borders(written, bins, above=above)
        side = "left" if above else "right"
        same = np.searchsorted(found, narrow.astype(np.float64), side=side)  # type: ignore[call-overload]
        apart = np.diff(np.unique(written))
        if len(apart) == 0 or (apart > 1e-5 * 1000).all():
            np.testing.assert_array_equal(np.searchsorted(found, written, side=side), same)  # type: ignore[call-overload]


def test_neighbouring_floats_are_told_apart() -> None:
    a, b = 1.0, float(np.nextafter(1.0, 2.0))
    values = np.array([a, b] * 10)
    for above, side in ((False, "right"), (True, "left")):
        found = borders(values, 4, above=above)
        assert len(np.unique(np.searchsorted(found, [a, b], side=side))) == 2  # type: ignore[call-overload]


def test_borders_of_nothing_and_of_one_value() -> None:
    assert borders(np.zeros(0), 5).tolist() == borders(np.full(9, 3.0), 5).tolist() == []
    (above,) = borders(np.full(9, 3.0), 5, above=True)
    assert 3.0 < above < 3.001, "a later log with larger values is seen"
