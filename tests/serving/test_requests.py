"""Requests: what is accepted, and a message with the path of the field for everything else."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from serving.protocol import values
from serving.protocol.faults import shortened
from serving.protocol.requests import MAX_CANDIDATES, MAX_REQUESTS, MAX_ROWS, RequestParser
from tests.serving.small import PLAIN_SCHEMA, SCHEMA
from thinktwice.errors import RequestError
from thinktwice.schema import parse_schema
from thinktwice.schema.limits import NUMBER_LIMIT

NOW = 1_767_693_600.0  # 2026-01-06T10:00:00Z, a Tuesday
PARSER = RequestParser(SCHEMA, online=True, clock=lambda: NOW)
PLAIN = RequestParser(PLAIN_SCHEMA, online=False, clock=lambda: NOW)


def test_a_whole_request() -> None:
    request = PARSER.parse(
        {
            "user_id": 7,
            "candidates": ["a", 1, 2.0, "a"],
            "context": {"slot": 3.0, "bid": 1, "timestamp": "2026-01-04T23:30:00Z"},
            "k": 2,
            "deadline_ms": 20,
        },
        "instances[0]",
    )
    assert request.user_id == "7"
    assert request.candidates == ("a", "1", "2", "a")
    assert request.context == {"hour": "23", "weekday": "6", "slot": "3", "bid": 1.0}
    assert (request.k, request.deadline_ms, request.missing, request.rows) == (2, 20.0, (), None)


@pytest.mark.parametrize(
    ("timestamp", "hour", "weekday"),
    [
        (None, "10", "1"),
        (NOW + 3600, "11", "1"),
        ("2026-01-06T10:00:00+02:00", "8", "1"),
        ("2026-01-06 10:00", "10", "1"),
        (0, "0", "3"),
    ],
)
def test_derived_fields_come_from_the_time(timestamp: Any, hour: str, weekday: str) -> None:
    context = {} if timestamp is None else {"timestamp": timestamp}
    request = PARSER.parse({"user_id": "u", "candidates": ["a"], "context": context}, "r")
    assert (request.context["hour"], request.context["weekday"]) == (hour, weekday)
    assert request.missing == ("slot", "bid")


ZONED = RequestParser(
    parse_schema(
        "{name: t, time: {column: ts, format: datetime, zone: Europe/Berlin}, entities: {item: {key: i}},"
        " fields: [{name: h, derived: hour}, {name: w, derived: weekday}]}",
        where="test",
    ),
    online=True,
    clock=lambda: NOW,
)


@pytest.mark.parametrize(
    ("timestamp", "hour", "weekday"),
    [
        (None, "11", "1"),  # now, by the clocks of the zone
        ("2024-07-01 00:30", "0", "0"),
        ("2024-07-01T00:30:00+00", "2", "0"),
        ("2024-06-30 22:30 UTC", "0", "0"),
        ("2024-03-31 02:30", "3", "6"),  # a gap: the clock that was not put forward
        ("2024-10-27 02:30", "2", "6"),  # occurs twice
        (1719786600, "0", "0"),
        (np.float64(1719786600.0), "0", "0"),
        (datetime(2024, 7, 1, 0, 30), "0", "0"),
        (datetime(2024, 6, 30, 22, 30, tzinfo=timezone.utc), "0", "0"),
        (date(2024, 7, 1), "0", "0"),
        (np.datetime64("2024-07-01T00:30"), "0", "0"),
    ],
)
def test_hours_are_those_of_the_zone_of_the_schema(timestamp: Any, hour: str, weekday: str) -> None:
    context = {} if timestamp is None else {"timestamp": timestamp}
    request = ZONED.parse({"candidates": ["a"], "context": context}, "r")
    assert request.context == {"h": hour, "w": weekday}
    if timestamp is not None:
        row = ZONED.parse({"rows": [{"timestamp": timestamp}]}, "r").rows
        assert row == ({"h": hour, "w": weekday},)


@pytest.mark.parametrize(
    ("timestamp", "words"),
    [
        ("01.03.2024", "is '01.03.2024', which is not a time: give Unix seconds, or 2024-03-01, "),
        ("1719786600", "which is not a time"),
        ("2101-01-01", "between 1970 and 2100"),
        (-1, "between 1970 and 2100"),
        (4_102_444_801, "between 1970 and 2100"),
        (1719786600000, "between 1970 and 2100"),
        (math.nan, "a finite number"),
        (True, "must be Unix seconds or a text, not a boolean"),
        (False, "must be Unix seconds or a text, not a boolean"),
        ([0], "must be a number, not a list"),
    ],
)
def test_a_timestamp_that_no_log_could_have_is_refused(timestamp: Any, words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)):
        ZONED.parse({"candidates": ["a"], "context": {"timestamp": timestamp}}, "r")


@pytest.mark.parametrize("value", [1e39, -1e39, 3.5e38, 10**40])
def test_a_vector_entry_that_is_infinite_in_float32_is_refused(value: float) -> None:
    with pytest.raises(RequestError, match=r"at most 3\.4e\+38") as refused:
        PARSER.parse({"rows": [{"cover": [0.5, 1.0, 0.0]}, {"cover": [0.5, value, 0.0]}]}, "instances[0]")
    assert refused.value.field == "instances[0].rows[1].cover[1]"
    request = PARSER.parse({"rows": [{"cover": [3.4e38, -3.4e38, 0], "bid": 1e39}]}, "r")
    assert request.rows is not None and request.rows[0]["cover"] == [3.4e38, -3.4e38, 0.0]


def test_a_field_of_the_log_named_timestamp() -> None:
    schema = parse_schema(
        "{name: t, time: {column: ts}, entities: {item: {key: item_id}},"
        " fields: [{name: timestamp}, {name: hour, derived: hour}]}",
        where="test",
    )
    parser = RequestParser(schema, online=True, clock=lambda: NOW)
    request = parser.parse({"candidates": ["a"], "context": {"timestamp": "x", "event_time": 0}}, "r")
    assert request.context == {"timestamp": "x", "hour": "0"}
    assert request.user_id is None


def test_raw_rows() -> None:
    row = {"user_id": 5, "price": None, "history": ["a", 2], "cover": [1, 2.5, 3], "hour": 3, "user_views_all": 0.5}
    request = PARSER.parse({"rows": [row, {}, {"timestamp": 0}]}, "r")
    assert request.rows is not None
    assert request.rows[0] == {
        "user_id": "5",
        "price": None,
        "history": ["a", "2"],
        "cover": [1.0, 2.5, 3.0],
        "hour": "3",
        "user_views_all": 0.5,
    }
    assert request.rows[1:] == ({}, {"hour": "0", "weekday": "3"})
    assert request.num_rows == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (np.True_, "true"), (np.float32(0.2), "0.2"), (np.float16(0.2), "0.2"), (0.2, "0.2"), (Decimal("0.20"), "0.2"), (np.int64(7), "7"),
     (b"p1", "p1"), (b"\xff", "\\xff"), (np.str_("a"), "a"), (date(2024, 3, 1), "2024-03-01"), (2**64 - 1, str(2**64 - 1)), (Decimal(10**30), str(10**30)), ("", "")],
)  # fmt: skip
def test_a_value_is_spelled_as_in_training(value: Any, text: str) -> None:
    assert PLAIN.parse({"rows": [{"site": value}]}, "r").rows == ({"site": text},)


@pytest.mark.parametrize(
    ("value", "found"),
    [(True, 1.0), (np.float32(0.2), 0.2), (" 0.2 ", 0.2), (b"2", 2.0), (Decimal("0.1"), 0.1), (np.uint8(3), 3.0), (2**70, 2.0**70), ("", None), (None, None)],
)  # fmt: skip
def test_a_number_is_read_as_in_training(value: Any, found: float | None) -> None:
    assert PLAIN.parse({"rows": [{"bid": value}]}, "r").rows == ({"bid": found},)


@given(
    st.floats(min_value=NUMBER_LIMIT, allow_infinity=False), st.sampled_from([1, -1]), st.sampled_from([float, repr])
)
def test_a_number_or_a_text_beyond_the_limits_is_refused_with_the_limits(value: float, sign: int, form: Any) -> None:
    with pytest.raises(RequestError) as refused:
        PARSER.parse({"rows": [{"bid": form(sign * value)}]}, "r")
    assert str(refused.value) == "r.rows[0].bid must be a number between -1e+300 and 1e+300"


@given(st.text(st.characters(exclude_characters="0123456789"), min_size=1))
def test_a_text_that_is_not_a_number_is_shown(text: str) -> None:
    with pytest.raises(RequestError) as refused:
        PARSER.parse({"rows": [{"bid": text}]}, "r")
    assert str(refused.value) == f"r.rows[0].bid must be a number, not {shortened(text)!r}"


@given(st.floats(min_value=2.0**53, max_value=1.7e308), st.sampled_from([1, -1]))
def test_a_float_that_cannot_be_an_id_is_shown_as_the_number_it_is(value: float, sign: int) -> None:
    with pytest.raises(RequestError, match="a float too large") as refused:
        PARSER.parse({"user_id": "u", "candidates": [sign * value]}, "r")
    shown = str(refused.value).split()[2].rstrip(",")
    assert float(shown) == sign * value


def test_a_missing_number_of_the_context_counts_as_left_out() -> None:
    request = PARSER.parse({"user_id": "u", "candidates": ["a"], "context": {"bid": "", "slot": ""}}, "r")
    assert request.missing == ("slot", "bid")


GOOD: dict[str, Any] = {"user_id": "u", "candidates": ["a"]}
BAD: list[tuple[Any, str]] = [
    (None, "r"),
    ([], "r"),
    ("x", "r"),
    ({}, "r.user_id"),
    ({"user_id": "u"}, "r.candidates"),
    ({**GOOD, "user": 1}, "r.user"),
    ({**GOOD, "user_id": None}, "r.user_id"),
    ({**GOOD, "user_id": ""}, "r.user_id"),
    ({**GOOD, "user_id": {}}, "r.user_id"),
    ({**GOOD, "user_id": ["u"]}, "r.user_id"),
    ({**GOOD, "user_id": "x" * 513}, "r.user_id"),
    ({**GOOD, "user_id": "a\x00b"}, "r.user_id"),
    ({**GOOD, "user_id": "\ud800"}, "r.user_id"),
    ({**GOOD, "user_id": math.nan}, "r.user_id"),
    ({**GOOD, "user_id": math.inf}, "r.user_id"),
    ({**GOOD, "candidates": None}, "r.candidates"),
    ({**GOOD, "candidates": "abc"}, "r.candidates"),
    ({**GOOD, "candidates": {}}, "r.candidates"),
    ({**GOOD, "candidates": []}, "r.candidates"),
    ({**GOOD, "candidates": ["a"] * (MAX_CANDIDATES + 1)}, "r.candidates"),
    ({**GOOD, "candidates": ["a", None]}, "r.candidates[1]"),
    ({**GOOD, "candidates": ["a", ""]}, "r.candidates[1]"),
    ({**GOOD, "candidates": [["a"]]}, "r.candidates[0]"),
    ({**GOOD, "k": 0}, "r.k"),
    ({**GOOD, "k": 1.5}, "r.k"),
    ({**GOOD, "k": True}, "r.k"),
    ({**GOOD, "k": "3"}, "r.k"),
    ({**GOOD, "deadline_ms": 0}, "r.deadline_ms"),
    ({**GOOD, "deadline_ms": -1}, "r.deadline_ms"),
    ({**GOOD, "deadline_ms": math.nan}, "r.deadline_ms"),
    ({**GOOD, "deadline_ms": "1"}, "r.deadline_ms"),
    ({**GOOD, "context": []}, "r.context"),
    ({**GOOD, "context": {"hour": 3}}, "r.context.hour"),
    ({**GOOD, "context": {"gender": "f"}}, "r.context.gender"),
    ({**GOOD, "context": {"x" * 100: 1}}, "r.context." + "x" * 64 + "..."),
    ({**GOOD, "context": {"slot": []}}, "r.context.slot"),
    ({**GOOD, "context": {"bid": "one"}}, "r.context.bid"),
    ({**GOOD, "context": {"bid": "nan"}}, "r.context.bid"),
    ({**GOOD, "context": {"bid": {}}}, "r.context.bid"),
    ({**GOOD, "context": {"bid": 1e300}}, "r.context.bid"),
    ({**GOOD, "context": {"bid": -math.inf}}, "r.context.bid"),
    ({**GOOD, "context": {"timestamp": "yesterday"}}, "r.context.timestamp"),
    ({**GOOD, "context": {"timestamp": -1}}, "r.context.timestamp"),
    ({**GOOD, "context": {"timestamp": 1e300}}, "r.context.timestamp"),
    ({**GOOD, "context": {"timestamp": []}}, "r.context.timestamp"),
    ({"rows": {}}, "r.rows"),
    ({"rows": []}, "r.rows"),
    ({"rows": [{}] * (MAX_CANDIDATES + 1)}, "r.rows"),
    ({"rows": [1]}, "r.rows[0]"),
    ({"rows": [{}], "user_id": "u"}, "r.user_id"),
    ({"rows": [{"label": 1}]}, "r.rows[0].label"),
    ({"rows": [{}, {"price": "cheap"}]}, "r.rows[1].price"),
    ({"rows": [{"history": "a"}]}, "r.rows[0].history"),
    ({"rows": [{"history": [[]]}]}, "r.rows[0].history[0]"),
    ({"rows": [{"history": ["a"] * 1001}]}, "r.rows[0].history"),
    ({"rows": [{"cover": [1, 2]}]}, "r.rows[0].cover"),
    ({"rows": [{"cover": [1, 2, "x"]}]}, "r.rows[0].cover[2]"),
    ({"rows": [{"cover": [1, 2, math.nan]}]}, "r.rows[0].cover[2]"),
]


@pytest.mark.parametrize("missing", [None, math.nan, np.float16("nan"), np.float32("nan")])
def test_null_and_nan_are_missing_values(missing: Any) -> None:
    row = PARSER.parse({"rows": [{"genre": missing, "price": missing, "history": [missing, "a"]}]}, "r").rows
    assert row == ({"genre": None, "price": None, "history": ["", "a"]},)


@pytest.mark.parametrize("number", range(len(BAD)))
def test_the_field_is_named(number: int) -> None:
    value, field = BAD[number]
    with pytest.raises(RequestError) as caught:
        PARSER.parse(value, "r")
    assert caught.value.field == field
    assert caught.value.status == 400
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "must be a list"),
        ([], "has 0 requests, at least 1"),
        ([GOOD] * (MAX_REQUESTS + 1), f"has {MAX_REQUESTS + 1} requests, at most {MAX_REQUESTS}"),
        ([{"rows": [{}] * 1000}] * 6, f"6000 rows in all, at most {MAX_ROWS}"),
        ([GOOD, {}], r"instances\[1\]\.user_id is missing"),
    ],
)
def test_a_body_is_limited(values: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PARSER.parse_all(values, "instances")


def test_a_model_without_features_takes_raw_rows_only() -> None:
    with pytest.raises(RequestError, match="has no features to look up"):
        PLAIN.parse(GOOD, "r")


def test_users_and_items_a_model_does_not_know() -> None:
    items = parse_schema("{name: t, time: {column: ts}, entities: {item: {key: i}}}", where="test")
    users = parse_schema("{name: t, time: {column: ts}, entities: {user: {key: u}}}", where="test")
    with pytest.raises(RequestError, match="knows no users"):
        RequestParser(items, online=True).parse(GOOD, "r")
    with pytest.raises(RequestError, match="knows no items"):
        RequestParser(users, online=True).parse(GOOD, "r")


IDS = st.one_of(
    st.text(st.characters(), max_size=6),
    st.sampled_from(["", "a\x00", "\ud800", "é", "x" * (values.MAX_TEXT + 1), "x" * values.MAX_TEXT]),
    st.integers(-5, 5),
    st.floats(),
    st.booleans(),
    st.none(),
)


ONE_BY_ONE: TypeAdapter[list[str]] = TypeAdapter(list[values.Id])
AT_ONCE: TypeAdapter[list[str]] = TypeAdapter(values.ids(1000))


def outcome(kind: TypeAdapter[list[str]], value: list[object]) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        return [(e["type"], e["loc"], e["msg"]) for e in error.errors()][:1]


@given(st.one_of(st.lists(IDS, min_size=1, max_size=5), st.lists(st.text("abc19", min_size=1), min_size=1, max_size=5)))
def test_a_list_of_ids_is_read_at_once_as_one_by_one(ids: list[object]) -> None:
    assert outcome(AT_ONCE, ids) == outcome(ONE_BY_ONE, ids)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hour", "(it is computed from timestamp, send that): known are bid, slot, timestamp"),
        ("weekday", "(it is computed from timestamp, send that)"),
        ("genre", "(a field of the item, it is looked up by the id)"),
        ("gender", "(a field of the user, it is looked up by the id)"),
        ("colour", ": known are bid, slot, timestamp"),
    ],
)
def test_a_field_that_is_no_context_says_where_it_comes_from(name: str, words: str) -> None:
    with pytest.raises(
        RequestError, match=re.escape(f"r.context.{name} is an unknown key {words}".replace(" :", ":"))
    ) as caught:
        PARSER.parse({"user_id": "u", "candidates": ["a"], "context": {name: "4"}}, "r")
    assert caught.value.field == f"r.context.{name}"


def test_the_hint_names_the_time_as_the_log_does() -> None:
    schema = parse_schema(
        """
        name: own
        time: {column: ts}
        entities: {user: {key: user_id}, item: {key: item_id}}
        fields: [{name: timestamp}, {name: hour, derived: hour}]
        """,
        where="test",
    )
    with pytest.raises(RequestError, match="it is computed from event_time, send that"):
        RequestParser(schema, online=True).parse({"user_id": "u", "candidates": ["a"], "context": {"hour": 4}}, "r")
