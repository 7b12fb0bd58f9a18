"""Values of a log as validation takes them: spellings, numbers, labels, times, limits; what is told, and what counts as a copy."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.validate.raw import START, row_id, shop_columns, write_raw
from thinktwice.schema.log import parse_schema
from thinktwice.validate.rules import noted_rules, row_rules
from thinktwice.validate.split import SplitResult, replay, split_log

ORDERED = "{name: t, time: {format: order}, label: {column: y}, quarantine_budget: 1, fields: [%s]}"


def split(folder: Path, columns: dict[str, Any], schema: str) -> tuple[SplitResult, pl.DataFrame]:
    """Validate a log of these arrow arrays or lists; the clean rows come back in their order in the log."""
    table = pa.table(columns)
    raw = write_raw(folder / "raw", pl.DataFrame({"unused": [0] * table.num_rows}), schema)
    log = pq.read_table(raw / "log.parquet").drop_columns(["unused"])
    for name in table.column_names:
        log = log.append_column(name, table[name])
    pq.write_table(log, raw / "log.parquet")
    result = split_log(raw, folder / "clean", folder / "bad", run_id="r")
    clean = pl.read_parquet(folder / "clean/clean.parquet")
    order = {row_id(i): i for i in range(table.num_rows)}
    return result, clean.sort(pl.col("row_id").replace_strict(order, return_dtype=pl.Int64))


def test_one_value_of_many_types(tmp_path: Path) -> None:
    columns = {
        "f": pa.array([0.2, 42.0], pa.float32()), "d": pa.array([Decimal("42.00"), Decimal("0.20")], pa.decimal256(60, 2)),
        "b": pa.array([b"p1", b"\xff\x00"]), "big": pa.array([1_700_000_000_000_003_000.0, 5.0]), "y": [0, 1],
        "unused": pa.array([Decimal(1), None], pa.decimal256(70, 3)),
    }  # fmt: skip
    fields = "{name: f}, {name: n, column: f, kind: numeric}, {name: d}, {name: dn, column: d, kind: numeric}, {name: b}, {name: big}"
    result, clean = split(tmp_path, columns, ORDERED % fields)
    assert clean.select("f", "n", "d", "dn", "b", "big").rows() == [
        ("0.2", 0.2, "42", 42.0, "p1", "1700000000000003000"),
        ("42", 42.0, "0.2", 0.2, "\\xff00", "5"),
    ]
    assert result.notes == {"big:inexact": 1}, "its id was rounded before the log was written"


@pytest.mark.parametrize(
    ("kind", "largest"), [(pa.float64(), 2.0**53), (pa.float32(), 2.0**24), (pa.float16(), 2.0**11)]
)
def test_rounded_ids_are_told(tmp_path: Path, kind: pa.DataType, largest: float) -> None:
    values = pa.array([largest, largest - 1, 7.0, None, -largest], pa.float64()).cast(kind)
    result, clean = split(tmp_path, {"x": values, "y": [0] * 5}, ORDERED % "{name: x}")
    assert (result.notes, clean.height) == ({"x:inexact": 2}, 5)
    whole, _ = split(tmp_path / "int", {"x": pa.array([2**60, 2**60 + 1]), "y": [0, 0]}, ORDERED % "{name: x}")
    assert whole.notes == {}, "integers are exact"


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_limits_of_the_schema_hold_for_every_width(tmp_path: Path, kind: pa.DataType) -> None:
    """0.1 and 0.7 as float32 lie a little beside what the schema says."""
    values = pa.array(np.array([0.1, 0.7, 0.4], kind.to_pandas_dtype()))
    schema = "{name: t, time: {format: order}, label: {column: x, threshold: 0.7}, quarantine_budget: 1, fields: [{name: x, kind: numeric, minimum: 0.1, maximum: 0.7}, {name: c, column: x, allowed: [0.1, 0.7]}]}"
    result, clean = split(tmp_path, {"x": values}, schema)
    assert result.reasons == {"c:allowed": 1}
    assert clean.select("x", "label", "c").rows() == [(0.1, 0, "0.1"), (0.7, 1, "0.7")]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["true", "false", "True", "FALSE", " 1 ", "0", "yes", "2", ""], [1, 0, 1, 0, 1, 0]),
        ([b"true", b"0", b"no"], [1, 0]),
        ([True, False, None], [1, 0]),
        (pa.array([1.0, 0.0, 0.5], pa.float16()), [1, 0]),
        ([Decimal("1.0"), Decimal("0.0"), Decimal("0.5")], [1, 0]),
    ],
)
def test_labels(tmp_path: Path, labels: Any, found: list[int]) -> None:
    result, clean = split(tmp_path, {"y": labels, "x": ["a"] * len(labels)}, ORDERED % "{name: x}")
    assert clean["label"].to_list() == found
    assert result.rows_quarantined == len(labels) - len(found)


def test_reasons_name_a_value_and_what_it_may_be(tmp_path: Path) -> None:
    columns = {
        "y": ["yes", "2", "1"],
        "t": ["01.03.2024", "2024-03-01 10:00", "2024-03-01"],
        "u": ["u" * 600, "a", "b"],
        "x": ["a", "b", "é" * 513],
    }
    schema = "{name: t, time: {column: t, format: datetime}, label: {column: y}, entities: {user: {key: u}}, fields: [{name: x}]}"
    result, _ = split(tmp_path, columns, schema)
    assert result.examples == {
        "label:number": "'yes'", "label:binary": "'2'", "time:parsable": "'01.03.2024'", "x:text": "'" + "é" * 59 + "... (513 characters)",
    }, "ids of users are not shown"  # fmt: skip
    described = {rule.id: rule.description for rule in row_rules(parse_schema(schema, where="test"))}
    assert "0 or 1 (or true or false)" in described["label:binary"] and "threshold" in described["label:binary"]
    assert "2024-03-01 10:00" in described["time:parsable"] and "+0900" in described["time:parsable"]
    assert "an impression id" in described["row:duplicate"]


LONG = ["x" * 512, "x" * 513, "é" * 512, "a\x00b", "ok"]


def test_what_no_request_could_ask_for_is_quarantined(tmp_path: Path) -> None:
    columns = {
        "x": LONG,
        "y": [0] * 5,
        "n": [1e300, -1e300, 9e299, float("inf"), 1.0],
        "f": [1.0, 2.0, float("-inf"), 4.0, None],
    }
    result, clean = split(tmp_path, columns, ORDERED % "{name: x}, {name: n, kind: numeric}, {name: f}")
    assert result.reasons == {"x:text": 2, "n:number": 3, "f:text": 1}
    assert clean["x"].to_list() == ["ok"]


def stamped(times: Any, schema_time: str, **more: Any) -> tuple[dict[str, Any], str]:
    rows = len(times)
    columns = {"t": times, "y": [i % 2 for i in range(rows)], "u": ["u1"] * rows, "x": ["a"] * rows, **more}
    return (
        columns,
        f"{{name: t, time: {{column: t, {schema_time}}}, label: {{column: y}}, entities: {{user: {{key: u}}}}, quarantine_budget: 1, fields: [{{name: x}}, {{name: h, derived: hour}}, {{name: w, derived: weekday}}]}}",
    )


TOKYO = "format: datetime, zone: Asia/Tokyo"


@pytest.mark.parametrize(
    ("time", "values"),
    [
        (TOKYO, [datetime(2024, 3, 20, 11)]),
        (TOKYO, ["2024-03-20 11:00"]),
        (TOKYO, [b"2024-03-20T02:00:00+00"]),
        (TOKYO, pa.array([1_710_900_000], pa.timestamp("s", "UTC"))),
        ("format: s, zone: Asia/Tokyo", [1_710_900_000]),
        ("format: ms, zone: Asia/Tokyo", ["1710900000000"]),
        ("format: yymmddhh, zone: Asia/Tokyo", [24032011]),
    ],
)
def test_hours_are_those_of_the_zone(tmp_path: Path, time: str, values: Any) -> None:
    columns, schema = stamped(values, time)
    result, clean = split(tmp_path, columns, schema)
    assert clean.select(pl.col("event_time").dt.epoch("s"), "h", "w").rows() == [(1_710_900_000, "11", "2")]
    assert result.notes == {}


@pytest.mark.parametrize(
    ("time", "values", "told"),
    [
        ("format: datetime", [datetime(2024, 3, 20, 11)], 1),
        ("format: datetime", ["2024-03-20 11:00", "2024-03-20 11:00Z", "2024-03-20 11:00+09", "2024-03-20"], 2),
        ("format: datetime", [date(2024, 3, 20)], 1),
        ("format: yymmddhh", [24032011], 1),
        ("format: datetime", pa.array([1], pa.timestamp("s", "UTC")), 0),
        ("format: s", [1_710_900_000], 0),
        ("format: datetime, zone: UTC", [datetime(2024, 3, 20, 11)], 0),
    ],
)
def test_hours_of_times_without_a_zone_are_told(tmp_path: Path, time: str, values: Any, told: int) -> None:
    columns, schema = stamped(values, time)
    result, _ = split(tmp_path, columns, schema)
    assert result.notes == ({"time:zone": told} if told else {})
    without = parse_schema(schema.replace(", {name: h, derived: hour}, {name: w, derived: weekday}", ""), where="test")
    assert "time:zone" not in {rule.id for rule in noted_rules(without)}, (
        "without derived fields the zone moves all rows alike"
    )


NOON, SECOND = datetime(2024, 3, 1, 12), timedelta(seconds=1)


@pytest.mark.parametrize(
    ("time", "times", "copies"),
    [
        ("format: datetime", pa.array([19783, 19783, 19784], pa.date32()), 0),
        ("format: datetime", pa.array([19783, 19783, 19784], pa.int32()).view(pa.date32()).cast(pa.date64()), 0),
        ("format: datetime", ["2024-03-01", "2024-03-01", "2024-03-02"], 0),
        ("format: datetime", [NOON, NOON, NOON + timedelta(hours=5)], 0),
        ("format: s", [7200, 7200, 3600], 0),
        ("format: datetime, zone: Asia/Kolkata", [NOON, NOON, NOON], 0),
        ("format: datetime, zone: Asia/Kolkata", pa.array([NOON, NOON, NOON], pa.timestamp("s", "UTC")), 2),
        ("format: datetime", [NOON, NOON, NOON + SECOND], 1),
        ("format: s", [7200, 7200, 3601], 1),
        ("format: yymmddhh", [24030110, 24030110, 24030111], 0),
    ],
)
def test_equal_rows_are_copies_where_times_are_finer_than_hours(
    tmp_path: Path, time: str, times: Any, copies: int
) -> None:
    columns, schema = stamped(times, time)
    columns["y"] = [1, 1, 1]
    result, _ = split(tmp_path, columns, schema)
    assert result.reasons.get("row:duplicate", 0) == copies


def test_a_copy_stays_one_when_the_quarantine_is_judged_again(tmp_path: Path) -> None:
    """Among quarantined rows alone all times may be whole hours by chance."""
    columns, schema = stamped([NOON, NOON, NOON + SECOND], "format: datetime")
    columns["y"] = [1, 1, 1]
    split(tmp_path, columns, schema)
    again = replay(tmp_path / "bad", tmp_path / "clean2", tmp_path / "bad2", run_id="again")
    assert again.reasons == {"row:duplicate": 1}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 3599, 3600, 7200]), min_size=2, max_size=12))
def test_the_copies_of_any_log_follow_its_finest_time(
    tmp_path_factory: pytest.TempPathFactory, times: list[int]
) -> None:
    columns, schema = stamped(times, "format: s")
    columns["y"] = [1] * len(times)
    result, clean = split(tmp_path_factory.mktemp("log"), columns, schema)
    fine = any(time % 3600 for time in times)
    assert result.reasons.get("row:duplicate", 0) == (len(times) - len(set(times)) if fine else 0)
    assert clean.height == (len(set(times)) if fine else len(times))


def test_bad_rows_of_every_type_reach_the_quarantine(tmp_path: Path) -> None:
    columns = {
        "y": [7, 1],
        "x": pa.array(["a", "b"], pa.string_view()),
        "z": pa.array([b"a", b"\xff"], pa.binary_view()),
        "d": pa.array([Decimal(1), None], pa.decimal256(60, 0)),
    }
    result, _ = split(tmp_path, columns, ORDERED % "{name: x}, {name: z}")
    bad = pq.read_table(tmp_path / "bad/quarantine.parquet")
    assert result.rows_quarantined == 1 and bad["d"].to_pylist() == [Decimal(1)] and bad["z"].to_pylist() == [b"a"]


def test_a_start_in_the_schema_of_the_shop_is_unchanged(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", shop_columns(20))
    result = split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert (result.notes, result.examples) == ({}, {})
    assert pl.read_parquet(tmp_path / "clean/clean.parquet")["event_time"].min().timestamp() == START  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_times_are_read_from_integers_of_any_width(tmp_path: Path, kind: str) -> None:
    columns = {"y": [0, 1, 0], "t": pa.array([3, 100, None], kind)}
    schema = "{name: log, time: {column: t, format: s}, label: {column: y}, fields: [{name: h, derived: hour}]}"
    result, clean = split(tmp_path, columns, schema)
    assert (result.rows_clean, result.rows_quarantined) == (2, 1)
    assert clean["event_time"].dt.epoch("s").to_list() == [3, 100]
