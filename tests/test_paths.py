"""A path is only characters: no folder name on the way to a log or a work folder is read as data or as a pattern."""

from __future__ import annotations

import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.data.validate.run import validate_log
from feature_repo import retrieve
from feature_repo.store import build
from tests.pipelines.own_log import write_log
from thinktwice import parquet, query
from thinktwice.data.ingest import ingest
from thinktwice.query import ExactFiles

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]
ROOT = Path(__file__).parents[1]
#: Where a parquet file is opened by its path, and by what.
HELPERS = {
    "thinktwice/parquet.py": "polars and pyarrow",
    "thinktwice/query.py": "DuckDB itself, and the files in its queries",
    "thinktwice/experiment/join.py": "DuckDB's reader of lines, of files listed by thinktwice.query",
    "thinktwice/data/sources/delimited.py": "a buffer in memory, no path",
    "thinktwice/release/challenger.py": "SQLite, by a quoted URI, and a temporary file",
    "benchmarks/infer.py": "the peer that is measured",
    "benchmarks/training/peers/job.py": "run in the environment of a peer, where nothing of this project is",
    "feature_repo/tables_engine.py": "Feast's DuckDB",
    "examples/own_log.py": "a user's own code",
    "examples/score_table.py": "a user's own code",
    "serving/telemetry/prediction_log.py": "a buffer in memory, no path",
    "serving/feedback/book.py": "SQLite, which takes a path for characters",
    "serving/feedback/offline.py": "SQLite",
    "serving/feedback/online.py": "SQLite",
    "thinktwice/selection/study.py": "SQLite, which takes a path for characters",
    "thinktwice/monitor/feedback.py": "SQLite, by a quoted URI",
    "thinktwice/data/sources/file_kind.py": "commands for the user, nothing is opened",
}
DIRECT = re.compile(
    r"\b(?:scan|read)_(?:parquet|csv|ndjson|ipc|avro|delta)\(|\bpl\.read_json\(|\bparquet_scan\b|\.(?:write|sink)_parquet\("
    r"|\b(?:pq\.\w+|ParquetFile|ParquetWriter|ParquetDataset|ds\.dataset)\(|pyarrow\.dataset|duckdb\.connect\("
    r"|sqlite3\.connect\("
)
ROOMS = ("thinktwice", "feature_repo", "components", "pipelines", "serving", "demo", "benchmarks", "examples", "images")

NAMES = (
    *("price=7", "user=alice", "item=s1", "label=1", "row_id=0000000000000001", "event_time=2024-01-01", "sku=s1"),
    *(
        "[1]",
        "[!a]",
        "[",
        "]",
        "*",
        "**",
        "?",
        "{a,b}",
        "a [*] b=?",
        "%20",
        "100%",
        "a b",
        "'",
        '"',
        "`",
        ";",
        "#",
        "$HOME",
    ),
    *("~", "\\", "a\\*", "a:b", "s3:", "file:", "&", "|", "!", "-", "--x", "ü 日本", "e\u0301", "new\nline", "tab\t"),
)
names = st.sampled_from(NAMES) | st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda n: n not in (".", "..") and len(n.encode()) < 100)


def through(place: Path) -> dict[str, Any]:
    """What ingest, validation, feature tables and the point-in-time join make of one log, everything below ``place``."""
    place.mkdir(parents=True)
    log, schema = write_log(place, rows=250)
    ingest("parquet", log, schema, place / "raw")
    verdict = validate_log(
        place / "raw", place / "clean", place / "bad", place / "report.html", place / "verdict", run_id="r"
    )
    build(place / "clean", place / "store", feature_version="v1")
    tables = {p.stem: parquet.read_frame(p) for p in (place / "store" / "data").iterdir()}
    return {
        "headline": verdict.headline,
        "findings": verdict.findings,
        "clean": parquet.read_frame(place / "clean" / "clean.parquet"),
        "quarantine": parquet.read_frame(place / "bad" / "quarantine.parquet"),
        **tables,
        "training set": pl.DataFrame(retrieve.training_set(place / "clean", place / "store")),
    }


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return through(tmp_path_factory.mktemp("ordinary") / "work")


def assert_same(got: dict[str, Any], ordinary: dict[str, Any]) -> None:
    assert got.keys() == ordinary.keys()
    for name, value in ordinary.items():
        same = got[name].equals(value) if isinstance(value, pl.DataFrame) else got[name] == value
        assert same, f"{name} is another one"


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(names, min_size=1, max_size=3))
@example(["price=7", "customer=c1", "row_id=0000000000000001"])
@example(["[1]", "*", "?"])
@example(["a\\[1]", "{a,b}", "color=red [*]"])
@example(["%20", "'", ";#"])
@example(["a:b", "~", "new\nline"])
def test_any_folder_gives_what_an_ordinary_one_gives(ordinary: dict[str, Any], folders: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for decoy in ("a", "b", "1", "x"):  # what a pattern would find instead
            Path(scratch, decoy).mkdir()
        assert_same(through(Path(scratch, *folders, "work")), ordinary)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(names, names)
def test_every_reader_opens_the_file_that_is_named(folder: str, file: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, folder)
        place.mkdir()
        named, frame = place / file, pl.DataFrame({"price": [1.5, 2.5], "x": ["a", "b"]})
        other = place / ("y" if file != "y" else "z")
        parquet.write_frame(frame, named)
        parquet.write_frame(frame.reverse(), other)
        with query.engine(Path(scratch)) as connection:
            connection.execute(f"COPY (FROM {query.source(named)}) TO {query.written(place / 'copy')} (FORMAT parquet)")
            assert connection.sql(f"FROM {query.source(named)}").pl().equals(frame)
        assert parquet.read_frame(place / "copy").equals(frame)
        assert parquet.read_frame(named, ["x"]).equals(frame.select("x"))
        assert parquet.scan_frame(named).collect().equals(frame)
        assert pl.DataFrame(parquet.read_table(named)).equals(frame)
        assert parquet.num_rows(named) == 2 and parquet.read_schema(named).names == ["price", "x"]


@pytest.mark.parametrize("name", ["~", "a:b", "s3:", "file:x", "[1]", "price=7"])
def test_a_relative_path_is_only_characters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    file, frame = Path(name, "t.parquet"), pl.DataFrame({"price": [1.5]})
    parquet.write_table(frame.to_arrow(), file)
    assert (tmp_path / name / "t.parquet").is_file()
    with query.engine(tmp_path) as connection:
        assert connection.sql(f"FROM {query.source(file)}").pl().equals(frame)
    assert parquet.read_frame(file).equals(frame) and parquet.scan_frame(file).collect().equals(frame)


def test_a_neighbour_that_may_not_be_listed_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "back\\slash").mkdir()  # escaped patterns would make DuckDB list it, and stumble
    named = tmp_path / "a[1]" / "t.parquet"
    named.parent.mkdir()
    parquet.write_frame(pl.DataFrame({"x": [1]}), named)
    with query.engine(tmp_path) as connection:
        assert connection.sql(f"FROM {query.source(named)}").fetchall() == [(1,)]


@pytest.mark.parametrize("name", ["price=7 [1] *?{a,b} it's 100%20 ü;#", "back\\slash"])
def test_a_query_that_does_not_fit_into_memory_spills_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(query, "MEMORY_LIMIT", "50MB")
    folder = tmp_path / name
    folder.mkdir()
    with query.engine(folder) as connection:
        connection.execute(
            "CREATE TEMP TABLE t AS SELECT random() AS a, random() AS b, random() AS c FROM range(4_000_000)"
        )
        ((spilled,),) = connection.sql("SELECT sum(size) FROM duckdb_temporary_files()").fetchall()
        assert spilled > 1_000_000
    assert list(folder.iterdir()) == []


def test_no_file_is_opened_by_its_path_but_by_the_helpers() -> None:
    found: dict[str, list[str]] = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if DIRECT.search(line)]
            if lines:
                found[path.relative_to(ROOT).as_posix()] = lines
    assert set(found) <= set(HELPERS), {f: lines for f, lines in found.items() if f not in HELPERS}
    assert set(HELPERS) <= set(found), "a helper that opens nothing: remove it from the list"


def test_threads_read_places_of_one_opened_file(tmp_path: Path) -> None:
    """DuckDB seeks and reads in several threads; a position that they shared gave bytes of another place."""
    content = np.arange(1 << 18, dtype=np.uint32).tobytes()
    (tmp_path / "[1]").write_bytes(content)
    with ExactFiles().open(f"exact://{tmp_path / '[1]'}") as file, ThreadPoolExecutor(8) as pool:

        def read(place: int) -> bool:
            file.seek(place)
            return file.read(64) == content[place : place + 64]

        places = np.random.default_rng(0).integers(0, len(content) - 64, 20_000).tolist()
        assert all(pool.map(read, places))
        assert file.seek(-4, os.SEEK_END) == len(content) - 4 and file.read() == content[-4:]
        assert file.tell() == len(content) and file.seek(-8, os.SEEK_CUR) == len(content) - 8
