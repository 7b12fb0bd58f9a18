"""Columns of any type: those that the schema names are read or refused in one sentence, the others do not matter."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.data.ingest import Snapshot, ingest
from thinktwice.data.sources.parquet_files import short
from thinktwice.errors import SchemaError
from thinktwice.parquet import read_frame, read_table
from thinktwice.schema import load_schema
from thinktwice.schema.columns import is_read, named_columns
from thinktwice.validate.split import replay, split_log

SCHEMA = """
name: mine
time: {column: at, format: s}
label: {column: clicked}
entities: {user: {key: user_id, column: u}}
fields: [{name: colour}]
quarantine_budget: 1
"""
FIELDS = {
    "time": "time: {column: x, format: datetime}\nfields: [{name: colour}]",
    "number": "time: {format: order}\nfields: [{name: colour}, {name: x, kind: numeric}]",
    "category": "time: {format: order}\nfields: [{name: colour}, {name: x}]",
    "vector": "time: {format: order}\nfields: [{name: colour}]\nentities: {item: {key: i}}\nvectors: [{name: x, dim: 1}]",
}
D = Decimal
VALUES: dict[str, pa.Array] = {
    "null": pa.array([None, None]),
    "bool": pa.array([True, None]),
    **{str(t): pa.array([1, None], t) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(t): pa.array([1, None], t) for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{str(t): pa.array([1.5, None], t) for t in (pa.float16(), pa.float32(), pa.float64())},
    **{str(t): pa.array([D("1.5"), None], t) for t in (pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(38, 2))},
    "decimal256": pa.array([D("1.5"), None], pa.decimal256(50, 2)),
    **{str(t): pa.array(["a", None], t) for t in (pa.string(), pa.large_string(), pa.string_view())},
    **{str(t): pa.array([b"\xff", None], t) for t in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1))},
    **{str(t): pa.array([dt.date(2024, 1, 1), None], t) for t in (pa.date32(), pa.date64())},
    **{str(t): pa.array([1, None], pa.int32()).cast(t) for t in (pa.time32("s"), pa.time32("ms"))},
    **{str(t): pa.array([1, None], pa.int64()).cast(t) for t in (pa.time64("us"), pa.time64("ns"))},
    **{str(t): pa.array([1, None], t) for t in map(pa.timestamp, ("s", "ms", "us", "ns"))},
    **{str(t): pa.array([1, None], t) for t in (pa.timestamp("us", "UTC"), pa.timestamp("us", "+03:00"))},
    **{str(t): pa.array([1, None], t) for t in (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "Mars/Base"))},
    "far date": pa.array([2**62, None], pa.timestamp("us")),
    **{str(t): pa.array([1, None], t) for t in map(pa.duration, ("s", "us", "ns"))},
    "list": pa.array([[1.0], None]),
    "large list": pa.array([[1.0], None], pa.large_list(pa.float32())),
    "fixed list": pa.array([[1.0], None], pa.list_(pa.float32(), 1)),
    "list view": pa.array([[1.0], None], pa.list_view(pa.float32())),
    "list of decimal256": pa.array([[D("1")], None], pa.list_(pa.decimal256(50, 0))),
    "list of lists": pa.array([[[1]], None]),
    "list of texts": pa.array([["a"], None]),
    "struct": pa.array([{"a": 1}, None]),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "dictionary of numbers": pa.array([1, None]).dictionary_encode(),
    "uuid": pa.array([b"0" * 16, None], pa.uuid()),
    "json": pa.array(["{}", None], pa.json_()),
    "bool8": pa.array([1, None], pa.bool8()),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    ),
    "no UTF-8": pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    ),
}


def taken(folder: Path, tables: list[pa.Table], schema: str = SCHEMA) -> tuple[Snapshot, pa.Table]:
    logs = folder / "logs"
    logs.mkdir(parents=True)
    for number, table in enumerate(tables):
        pq.write_table(table, logs / f"{'abcdefgh'[number]}.parquet")
    (folder / "mine.yaml").write_text(schema)
    snapshot = ingest("parquet", logs, folder / "mine.yaml", folder / "raw")
    return snapshot, read_table(folder / "raw" / "log.parquet")


def log(**columns: Any) -> pa.Table:
    """Two rows that differ in nothing, and the given columns."""
    return pa.table({"at": [5, 5], "clicked": [1, 1], "u": ["a", "a"], "colour": ["red", "red"], **columns})


@pytest.mark.parametrize("name", VALUES)
def test_a_column_that_the_schema_does_not_name_does_not_matter(tmp_path: Path, name: str) -> None:
    values = VALUES[name]
    taken(tmp_path, [log(x=values, **{"x.y": values})])
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    same = values.is_null().to_pylist() == [True, True]  # then the two rows are copies of each other
    assert (result.rows_clean, result.rows_quarantined) == ((1, 1) if same else (2, 0))
    # A bad row keeps its original, whatever its type; and it can be replayed.
    bad = log(x=values).set_column(1, "clicked", pa.array([7, 1]))
    taken(tmp_path / "bad row", [bad])
    places = [tmp_path / "bad row" / part for part in ("raw", "clean", "bad")]
    assert split_log(*places, run_id="r").rows_quarantined == 1
    kept = read_table(places[2] / "quarantine.parquet", ["x"])
    assert kept.num_rows == 1 and kept["x"].is_null().to_pylist() == [name == "null"]
    again = [tmp_path / "again" / part for part in ("clean", "bad")]
    assert replay(places[2], *again, run_id="r").rows_quarantined == 1
    assert read_table(again[1] / "quarantine.parquet", ["x"]).equals(kept)


@pytest.mark.parametrize(("name", "use"), list(itertools.product(VALUES, FIELDS)))
def test_a_column_that_the_schema_names_is_read_or_refused_at_ingest(tmp_path: Path, name: str, use: str) -> None:
    schema = f"name: mine\nlabel: {{column: clicked}}\nquarantine_budget: 1\n{FIELDS[use]}\n"
    table = pa.table({"clicked": [1, 0], "colour": ["a", "b"], "i": ["1", "2"], "x": VALUES[name]})
    if name == "no UTF-8":
        return  # no valid arrow text; what reads it, decides
    try:
        taken(tmp_path, [table], schema)
    except SchemaError as error:
        assert f"has type {pq.read_schema(tmp_path / 'logs/a.parquet').field('x').type}" in str(error)
        assert "cannot be read" in str(error) and "are read; write it as one of these" in str(error)
        assert not (tmp_path / "raw").exists()
        return
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert result.rows_in == 2
    clean = read_frame(tmp_path / "clean" / "clean.parquet")
    if use != "time" and result.rows_clean == 2 and name not in ("null", "far date"):
        assert clean.sort("row_id")["x" if use != "time" else "event_time"].null_count() <= 1


def test_the_types_that_are_read_are_a_list_of_those_that_are_read() -> None:
    assert not is_read(pa.month_day_nano_interval(), "category") and not is_read(pa.dense_union([]), "category")
    assert not is_read(pa.struct([("a", pa.int8())]), "category") and not is_read(pa.duration("s"), "number")
    assert is_read(pa.dictionary(pa.int8(), pa.string()), "time") and not is_read(pa.bool_(), "time")
    assert not is_read(pa.date32(), "number") and is_read(pa.string(), "vector")
    assert is_read(pa.list_(pa.float32()), "vector") and not is_read(pa.list_(pa.string()), "vector")


@pytest.mark.parametrize("column", ["colour", "at", "clicked", "u"])
def test_a_named_column_that_is_there_twice_is_refused_before_anything_is_written(tmp_path: Path, column: str) -> None:
    table = log()
    twice = table.append_column(column, table[column])
    with pytest.raises(SchemaError, match=f"column '{column}' appears twice in .*b.parquet: keep one of them"):
        taken(tmp_path, [log(), twice])
    assert not (tmp_path / "raw").exists()


def test_an_unnamed_column_that_is_there_twice_is_left_out_and_named(tmp_path: Path) -> None:
    table = log(x=[1, 2], y=[1, 2])
    snapshot, got = taken(tmp_path, [table, table.append_column("x", pa.array(["p", "q"]))])
    assert snapshot.columns_left_out == {"x": "twice in b.parquet"}
    assert got.column_names == ["row_id", "source_row", "at", "clicked", "u", "colour", "y"] and got.num_rows == 4


def test_names_with_dots_are_names(tmp_path: Path) -> None:
    table = log(**{"colour.total": VALUES["decimal256"], "a.b": [1, 2], "a": ["x", "y"]})
    snapshot, got = taken(tmp_path, [table])
    assert snapshot.columns_left_out == {} and got["a.b"].to_pylist() == [1, 2] and got["a"].to_pylist() == ["x", "y"]
    assert split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r").rows_clean == 2
    assert read_frame(tmp_path / "clean/clean.parquet")["colour"].to_list() == ["red", "red"]


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (pa.array([1], pa.int8()), pa.array([2], pa.int64()), [1, 2]),
        (pa.array([1], pa.uint32()), pa.array([-2], pa.int16()), [1, -2]),
        (pa.array([1], pa.uint64()), pa.array([-2], pa.int64()), [1, -2]),
        (pa.array([1, 2], pa.int64()), pa.array([3.0, None]), [1.0, 2.0, 3.0, None]),
        (pa.array([0.1], pa.float32()), pa.array([0.1], pa.float64()), [0.1, 0.1]),
        (
            pa.array([D("1.5")], pa.decimal128(5, 1)),
            pa.array([D("2.25")], pa.decimal128(20, 2)),
            [D("1.50"), D("2.25")],
        ),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), ["a", "b"]),
        (pa.array([None]), pa.array(["b"]), [None, "b"]),
        (pa.array(["a"]), None, ["a", None, None]),
    ],
)
def test_types_that_go_together_are_read_as_one(tmp_path: Path, first: Any, second: Any, joined: list[Any]) -> None:
    two = (
        log()
        if second is None
        else pa.table({**dict(zip(log().column_names, log().slice(0, len(second)).columns, strict=True)), "x": second})
    )
    one = pa.table({**dict(zip(log().column_names, log().slice(0, len(first)).columns, strict=True)), "x": first})
    _, got = taken(tmp_path, [one, two], SCHEMA.replace("{name: colour}", "{name: colour}, {name: x}"))
    assert got["x"].to_pylist() == joined


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            [2**53 + 1],
            [1.0],
            "is integer (int64) in a.parquet and float (double) in b.parquet, and 9007199254740993 in a",
        ),
        (
            [1],
            [float(2**53)],
            "is integer (int64) in a.parquet and float (double) in b.parquet, and 9007199254740992 in b",
        ),
        ([-(2**53) - 1], [1.0], "-9007199254740993 in a.parquet does not fit: ids above 2^53 (9,007,199,254,740,992)"),
        ([1], ["1"], "is integer (int64) in a.parquet and text (string) in b.parquet: write it with one type"),
        ([True], [1], "is bool in a.parquet and integer (int64) in b.parquet"),
        (
            pa.array([2**64 - 1], pa.uint64()),
            [1],
            "is integer (uint64) in a.parquet and integer (int64) in b.parquet, and a value",
        ),
        (
            pa.array([1], pa.timestamp("us")),
            pa.array([1], pa.timestamp("us", "UTC")),
            "is a timestamp without a zone in a.parquet and a timestamp with zone UTC in b",
        ),
        (pa.array([2**61], pa.timestamp("ms")), pa.array([1], pa.timestamp("ns")), "a value in a.parquet does not fit"),
        (
            pa.array([D("1")], pa.decimal128(38, 0)),
            pa.array([D("0.1")], pa.decimal128(38, 38)),
            "is decimal (decimal128(38, 0)) in a.parquet and decimal",
        ),
        ([b"a"], ["a"], "is bytes (binary) in a.parquet and text (string) in b.parquet"),
    ],
)
def test_types_that_do_not_go_together_are_one_sentence_before_anything_is_written(
    tmp_path: Path, first: Any, second: Any, words: str
) -> None:
    tables = [
        log().slice(0, 1).append_column("x", values if isinstance(values, pa.Array) else pa.array(values))
        for values in (first, second)
    ]
    with pytest.raises(SchemaError) as caught:
        taken(tmp_path, tables, SCHEMA.replace("{name: colour}", "{name: colour}, {name: x}"))
    assert f"column 'x' {words.removeprefix('column ')}" in str(caught.value) or words in str(caught.value)
    assert "write" in str(caught.value) and not (tmp_path / "raw").exists() and str(caught.value)[-1].isalpha()
    # The same columns, not named: left out and said.
    snapshot, got = taken(tmp_path / "unnamed", tables)
    assert got.num_rows == 2 and (set(snapshot.columns_left_out) == {"x"}) == ("x" not in got.column_names)


def test_measured_numbers_may_be_integers_here_and_floats_there(tmp_path: Path) -> None:
    tables = [log(x=[2**53 + 1, 1]), log(x=[0.5, None]), log(x=pa.array([D("2.5"), None], pa.decimal128(5, 1)))]
    _, got = taken(tmp_path, tables, SCHEMA.replace("{name: colour}", "{name: colour}, {name: x, kind: numeric}"))
    assert got["x"].to_pylist() == [float(2**53), 1.0, 0.5, None, 2.5, None]


def test_zones_that_differ_are_read_in_utc(tmp_path: Path) -> None:
    moments = [
        pa.array([3_600 * i], pa.timestamp("s", zone))
        for i, zone in enumerate(("UTC", "Europe/Berlin", "+09:00", "Mars/Base"))
    ]
    tables = [pa.table({"at": m, "clicked": [1], "u": ["a"], "colour": ["red"]}) for m in moments]
    _, got = taken(tmp_path, tables, SCHEMA.replace("format: s", "format: datetime"))
    assert str(got["at"].type).endswith("tz=UTC]")
    split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert read_frame(tmp_path / "clean/clean.parquet")["event_time"].dt.hour().to_list() == [0, 1, 2, 3]


def test_a_wide_log_is_read_in_fewer_rows_at_a_time(tmp_path: Path) -> None:
    wide = pa.table(
        {
            **{f"c{i}": pa.array(range(3000), pa.int16()) for i in range(1500)},
            "clicked": [1, 0] * 1500,
            "colour": ["a"] * 3000,
        }
    )
    snapshot, got = taken(
        tmp_path, [wide], "name: mine\ntime: {format: order}\nlabel: {column: clicked}\nfields: [{name: colour}]\n"
    )
    assert snapshot.rows == 3000 and got["c1499"].to_pylist() == list(range(3000))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab ,.:\n(é"), max_size=400), st.integers(20, 200))
def test_a_library_s_words_are_never_cut_within_a_word(text: str, limit: int) -> None:
    said = short(ValueError(text), limit)
    first = next((line.strip() for line in text.strip().splitlines()), "")
    assert "\n" not in said
    if said.endswith(" …"):
        kept = said.removesuffix(" …")
        assert (
            len(kept) <= limit and first.startswith(kept) and (" " not in first[:limit] or first[len(kept)] in " ,;:(")
        )
    elif first.strip().rstrip(".:"):
        assert first.startswith(said)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([1, 2]), st.sampled_from(["p", "q", None])),
        min_size=2,
        max_size=12,
    )
)
def test_two_rows_are_copies_when_they_are_equal_in_every_column(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, str | None]]
) -> None:
    folder = tmp_path_factory.mktemp("copies")
    colours, numbers, texts = zip(*rows, strict=True)
    table = pa.table(
        {
            "at": [5] * len(rows), "clicked": [1] * len(rows), "u": ["a"] * len(rows), "colour": colours,
            "n": pa.array([[D(n)] for n in numbers], pa.list_(pa.decimal256(40, 0))), "t": pa.array(texts, pa.string()),
        }
    )  # fmt: skip
    taken(folder, [table])
    result = split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")
    assert result.rows_clean == len(set(rows))
    assert load_schema(folder / "raw/schema.yaml") and "n" not in named_columns(load_schema(folder / "raw/schema.yaml"))
    kept = pl.read_parquet(folder / "bad/quarantine.parquet", columns=["source_row"])["source_row"].to_list()
    assert kept == [i for i, row in enumerate(rows) if row in rows[:i]]
