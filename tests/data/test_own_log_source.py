"""The source ``log``: several paths and patterns, folders of text, JSON lines of any values, and a window of time."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.own_logs import SCHEMA, as_csv, as_json_lines, small_log
from thinktwice.cli import main
from thinktwice.data.ingest import Snapshot, ingest
from thinktwice.data.sources import text
from thinktwice.errors import DataError, SchemaError, StorageError
from thinktwice.schema.values import spell

Writer = Callable[[pl.DataFrame, Path], None]
WRITERS: dict[str, Writer] = {
    "csv": as_csv,
    "jsonl": as_json_lines,
    "parquet": lambda log, path: log.write_parquet(path),
}


def parts(folder: Path, ending: str, num: int = 3) -> list[pl.DataFrame]:
    """Files ``2.csv``, ``10.csv``, ``30.csv`` ... of consecutive rows; their order is that of the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    log = small_log(30 * num)
    pieces = [log[30 * n : 30 * (n + 1)] for n in range(num)]
    for number, piece in zip((2, 10, 30, 200), pieces, strict=False):
        WRITERS[ending](piece, folder / f"{number}.{ending}")
    return pieces


def read(path: str | Path, folder: Path, **window: str) -> tuple[Snapshot, pl.DataFrame]:
    (folder / "schema.yaml").write_text(SCHEMA)
    snapshot = ingest("log", path, folder / "schema.yaml", folder / "raw", **window)
    return snapshot, pl.read_parquet(folder / "raw/log.parquet", hive_partitioning=False)


def users(rows: pl.DataFrame) -> list[str]:
    return rows["user"].cast(pl.String).to_list()


@pytest.mark.parametrize("ending", WRITERS)
def test_a_folder_a_pattern_and_all_paths_are_one_log(ending: str, tmp_path: Path) -> None:
    pieces = parts(tmp_path / "logs", ending)
    expected = users(pl.concat(pieces))
    files = [tmp_path / "logs" / f"{n}.{ending}" for n in (2, 10, 30)]
    for path in (tmp_path / "logs", tmp_path / "logs" / f"*.{ending}", "\n".join(map(str, files))):
        snapshot, rows = read(str(path), tmp_path)
        assert users(rows) == expected and rows["source_row"].to_list() == list(range(90))
        assert snapshot.rows == 90 and len(snapshot.files) == 3


@pytest.mark.parametrize("ending", WRITERS)
def test_the_folder_names_of_any_format_are_columns(ending: str, tmp_path: Path) -> None:
    pieces = parts(tmp_path / "flat", ending, num=2)
    for number, piece in enumerate(pieces):
        (tmp_path / "logs" / f"device=d{number}").mkdir(parents=True)
        WRITERS[ending](piece.drop("device"), tmp_path / "logs" / f"device=d{number}" / f"x.{ending}")
    _, rows = read(tmp_path / "logs", tmp_path)
    assert rows["device"].to_list() == ["d0"] * 30 + ["d1"] * 30 and users(rows) == users(pl.concat(pieces))


def test_the_command_takes_several_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts(tmp_path / "logs", "csv")
    (tmp_path / "s.yaml").write_text(SCHEMA)
    paths = [word for n in (2, 30) for word in ("--path", str(tmp_path / "logs" / f"{n}.csv"))]
    command = [
        "data",
        "ingest",
        "--source",
        "log",
        "--schema",
        str(tmp_path / "s.yaml"),
        "--out",
        str(tmp_path / "raw"),
    ]
    assert main([*command, *paths]) == 0
    shown = capsys.readouterr().out
    assert "60 rows in" in shown and "cells separated by commas, encoding utf-8" in shown
    assert main([*command, *paths, "--source", "parquet"]) == 1
    assert "reads one path, but 2 were given: give one, or use --source log" in capsys.readouterr().err


FAULTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "the same file twice": (lambda f: f"{f / '2.csv'}\n{f / '2.csv'}", "is given twice"),
    "a file and its folder's copy": (
        lambda f: ((f / "copy.csv").write_bytes((f / "2.csv").read_bytes()), str(f))[1],
        "have the same content, so their rows would count twice",
    ),
    "nothing matches": (lambda f: str(f / "*.tsv"), "nothing matches the pattern"),
    "no such file": (lambda f: str(f / "none.csv"), "no such path"),
    "a URL of the web": (
        lambda f: "https://example.org/log.csv",
        "is not an object or a folder of an object store: use s3",
    ),
    "two formats": (
        lambda f: (small_log(5).write_parquet(f.parent / "x.parquet"), f"{f / '2.csv'}\n{f.parent / 'x.parquet'}")[1],
        "must be of one format, but these are delimited (.*) and parquet",
    ),
    "other columns": (
        lambda f: ((f / "other.csv").write_text("a,b\n1,2\n3,4\n"), str(f))[1],
        "other.csv has none of the columns that the schema names",
    ),
    "an empty part": (lambda f: ((f / "x.csv").write_text(""), str(f))[1], "x.csv is empty: give the whole file"),
    "a truncated gzip": (
        lambda f: ((f / "x.csv.gz").write_bytes(gzip.compress(bytes((f / "2.csv").read_bytes()))[:200]), str(f))[1],
        "is truncated or damaged",
    ),
    "an excel workbook": (
        lambda f: ((f / "x.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 100), str(f / "x.xls"))[1],
        "an old Excel workbook",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_paths_and_files_are_one_sentence(name: str, tmp_path: Path) -> None:
    parts(tmp_path / "logs", "csv")
    path, message = FAULTS[name]
    with pytest.raises((DataError, StorageError), match=message) as caught:
        read(path(tmp_path / "logs"), tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "raw").exists()


def test_notes_and_hidden_files_beside_the_log_are_left_out(tmp_path: Path) -> None:
    pieces = parts(tmp_path / "logs", "csv")
    (tmp_path / "logs" / "README.txt").write_text("Exported on Monday.\nAsk Kim.\n")
    (tmp_path / "logs" / "_SUCCESS").write_text("")
    snapshot, rows = read(tmp_path / "logs", tmp_path)
    assert users(rows) == users(pl.concat(pieces))
    assert snapshot.left_out == {"README.txt": "no data", "_SUCCESS": "hidden"}


def test_a_column_that_a_later_file_lacks_is_null_there(tmp_path: Path) -> None:
    pieces = parts(tmp_path / "logs", "csv")
    as_csv(pieces[1].drop("price").select(sorted(pieces[1].drop("price").columns)), tmp_path / "logs" / "10.csv")
    snapshot, rows = read(tmp_path / "logs", tmp_path)
    assert snapshot.columns_missing == {"price": "not in 10.csv"}
    assert (
        users(rows) == users(pl.concat(pieces))
        and rows["price"].is_null().to_list() == [False] * 30 + [True] * 30 + [False] * 30
    )


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=5),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(scalars, min_size=1, max_size=8), st.sampled_from([16, 1 << 20]))
def test_a_column_of_any_json_values_has_the_spelling_of_its_values(values: list[Any], block: int) -> None:
    from thinktwice.validate.split import split_log

    schema = "name: x\ntime: {format: order}\nlabel: {column: y}\nfields: [{name: a}]\nquarantine_budget: 1\n"
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block)
        folder = Path(name)
        (folder / "schema.yaml").write_text(schema)
        lines = [json.dumps({"y": 1, "a": value}) for value in values]
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
        ingest("log", folder / "log.jsonl", folder / "schema.yaml", folder / "raw")
        kind = pl.read_parquet(folder / "raw/log.parquet")["a"].dtype
        split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")
        clean = pl.read_parquet(folder / "clean/clean.parquet").sort("event_time")["a"].to_list()
    if kind == pl.Float64:  # integers beyond a float's precision, and such floats, are no ids in any log
        assert all(isinstance(v, int | float) for v in values if v is not None)
    else:
        assert clean == [spell(value) for value in values]


def test_broken_json_lines_are_kept(tmp_path: Path) -> None:
    as_json_lines(small_log(6), tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_bytes().split(b"\n")
    lines[2:2] = [b'{"at": "2024', b"[1, 2]", b"", b'{"a": "\xff"}', b'{"at": "x", "user": 1, "user": 2}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    snapshot, _ = read(tmp_path / "log.jsonl", tmp_path)
    assert (snapshot.rows, snapshot.unparsable_rows) == (6, 4)
    broken = pl.read_parquet(tmp_path / "raw/unparsable.parquet")
    assert broken["source_row"].to_list() == [2, 3, 4, 5]
    expected = (
        "line 3: it is not JSON",
        "line 4: it is a list",
        "line 6: byte 8 is not UTF-8",
        "line 7: its key 'user' appears twice",
    )
    for error, words in zip(broken["error"], expected, strict=True):
        assert error.startswith(words)


@pytest.mark.parametrize(("ending", "broken"), [("csv", '"open,x'), ("jsonl", '{"at": ')])
def test_a_broken_record_of_several_files_names_its_file(ending: str, broken: str, tmp_path: Path) -> None:
    parts(tmp_path / "logs", ending)
    expected = []
    for name in (f"10.{ending}", f"30.{ending}"):
        whole = (tmp_path / "logs" / name).read_bytes()
        (tmp_path / "logs" / name).write_bytes(whole + f"{broken}\n".encode())
        expected.append(f"{name}, line {len(whole.splitlines()) + 1}")
    snapshot, _ = read(tmp_path / "logs", tmp_path)
    assert (snapshot.rows, snapshot.unparsable_rows) == (90, 2)
    errors = pl.read_parquet(tmp_path / "raw/unparsable.parquet")["error"].to_list()
    assert [e.split(":")[0] for e in errors] == expected


@pytest.mark.parametrize(("ending", "packed"), [("csv", False), ("csv", True), ("jsonl", False)])
def test_a_nul_byte_costs_its_line_and_not_the_file(ending: str, packed: bool, tmp_path: Path) -> None:
    """Anywhere in a part of a folder, also in its first lines, from which the format is found."""
    pieces = parts(tmp_path / "logs", ending)
    file = tmp_path / "logs" / f"10.{ending}"
    lines = file.read_bytes().split(b"\n")
    lines[3:3] = [b"a\0b"]
    file.write_bytes(b"\n".join(lines))
    if packed:
        file.with_suffix(f".{ending}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    snapshot, rows = read(tmp_path / "logs", tmp_path)
    assert (snapshot.rows, snapshot.unparsable_rows) == (90, 1)
    assert users(rows) == users(pl.concat(pieces))


def test_a_column_of_mixed_types_is_named(tmp_path: Path) -> None:
    rows = [
        {
            "at": "2024-03-01",
            "bought": 1,
            "user": u,
            "item": 1,
            "title": "",
            "color": "",
            "device": "d",
            "price": 1,
            "look": [1, 2],
        }
        for u in (1, "a", 2.0)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    snapshot, read_rows = read(tmp_path / "log.jsonl", tmp_path)
    assert users(read_rows) == ["1", "a", "2"]
    assert "column 'user' contains integer and number and text, and is read as text" in snapshot.what_was_read()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from(["UTC", "Asia/Tokyo"]))
def test_since_and_until_select_by_the_time_of_the_impression(since: int, length: int, zone: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = small_log(40).with_columns(at=pl.Series([None, *small_log(40)["at"][1:]]))
        as_csv(log, folder / "log.csv")
        start = datetime(2024, 3, 1, tzinfo=timezone.utc)
        begin, end = (start + timedelta(minutes=7 * n) for n in (since, since + length))
        local = (begin + timedelta(hours=9 if zone == "Asia/Tokyo" else 0)).strftime("%Y-%m-%d %H:%M")
        (folder / "schema.yaml").write_text(SCHEMA.replace("format: datetime", f"format: datetime, zone: {zone}"))
        window = {"since": local, "until": end.isoformat()}
        snapshot = ingest("log", folder / "log.csv", folder / "schema.yaml", folder / "raw", **window)  # type: ignore[arg-type]
        rows = pl.read_parquet(folder / "raw/log.parquet")
    inside = [
        n for n in range(40) if n == 0 or since <= n < since + length
    ]  # a row without a time stays, to be quarantined
    assert rows["source_row"].to_list() == inside and snapshot.rows_outside == 40 - len(inside)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"since": "last week"}, "--since 'last week' is not a time: write it like 2024-03-01"),
        ({"since": "2024-03-02", "until": "2024-03-01"}, "is not before --until 2024-03-01: swap them"),
        ({"since": "2030-01-01"}, "all 90 rows of .* are outside --since and --until"),
    ],
)
def test_windows_that_select_nothing_are_explained(window: dict[str, str], message: str, tmp_path: Path) -> None:
    parts(tmp_path / "logs", "csv")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "logs", tmp_path, **window)


def test_a_schema_that_names_a_missing_column_says_which_there_are(tmp_path: Path) -> None:
    as_csv(small_log(5).rename({"price": "prices"}), tmp_path / "log.csv")
    with pytest.raises(SchemaError, match="did you mean 'prices'"):
        read(tmp_path / "log.csv", tmp_path)
