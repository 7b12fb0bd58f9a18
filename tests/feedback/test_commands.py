"""The commands: a training log imported, clicks and impressions of files after it, a replay, and what a user sees of mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serving.features.feast_source import FeastSource, open_feast
from serving.feedback.cli import app
from serving.feedback.config import FeedbackConfig
from serving.feedback.event_log import EventLog, segment_file
from serving.feedback.offline import import_files, log_status, replay_log
from serving.feedback.service import open_book
from tests.data.instant.logs import assert_same_bits
from tests.data.instant.oracle import Row
from tests.feedback.stores import full_schema, make_store, random_log
from tests.feedback.streams import SECOND, counters_at, values_of
from thinktwice.data.instant.definition import Definition, definition_of
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.data.pushed_views import STATE
from thinktwice.errors import DataError, FeatureStoreError, ServerError
from thinktwice.files import read_json
from thinktwice.monitor.feedback import STATE_FILE
from thinktwice.monitor.record import log_schema
from thinktwice.records.events import CLICK_COLUMNS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SCHEMA, CONFIG = full_schema(), FeedbackConfig()
LOG = random_log(200)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    make_store(folder, LOG, SCHEMA)
    return folder


def definition() -> Definition:
    found = definition_of(SCHEMA)
    assert found is not None
    return found


def training_counters(made: Path, rows: list[Row], scratch: Path) -> np.ndarray:
    """What a training set has for these rows after those of the log."""
    table = pl.read_parquet(made / "clean" / "clean.parquet")
    from tests.feedback.stores import clean_table

    more = clean_table(rows).with_columns(pl.format("x{}", pl.col("row_id")).alias("row_id"))
    both = pl.concat([table, more])
    found = definition()
    return np.concatenate(list(log_counters(log_rows(lambda n: both[n], found), found, scratch, 1000)))[-len(rows) :]


def test_an_imported_training_log_gives_the_counters_of_training(made: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = import_files(log, made / "store", CONFIG, [made / "clean"], push=True)
    clicks = sum(row.clicked for row in LOG)
    assert done.events == len(LOG) + clicks and done.quarantined == 0
    assert done.counts["impressions"] == len(LOG) and done.counts["clicks"] == clicks
    book = open_book(log / STATE_FILE, SCHEMA, CONFIG)
    now = book.at
    asked = [Row(now, False, r.user, r.item, r.topics, r.attributes) for r in LOG[-20:]]
    expected = training_counters(made, asked, tmp_path)
    for row, counters in zip(asked, expected, strict=True):
        assert_same_bits(counters_at(book, row)[None], counters[None], definition().names)
    users = [row.user for row in asked if row.user]
    source = FeastSource(
        *open_feast(made / "store", read_json(made / "store" / "feature_store.json")["feature_service"]), SCHEMA
    )
    online = source.fetch_fields("user_id", [("user_instant", STATE)], users)
    assert [row[0] for row in online] == [book.content("user", user) for user in users]
    source.close()
    book.close()


def test_an_import_may_be_repeated(made: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = import_files(log, made / "store", CONFIG, [made / "clean"], push=False)
    book = open_book(log / STATE_FILE, SCHEMA, CONFIG)
    rows = {(r.kind, r.key): r.content for r in book.rows()}
    book.close()
    again = import_files(log, made / "store", CONFIG, [made / "clean"], push=False)
    book = open_book(log / STATE_FILE, SCHEMA, CONFIG)
    assert {(r.kind, r.key): r.content for r in book.rows()} == rows
    book.close()
    for name in ("impressions", "clicks", "outcomes_clicked", "outcomes_not_clicked"):
        assert again.counts[name] == first.counts[name], name
    left_out = ("impressions_twice", "impressions_too_late", "clicks_twice", "clicks_too_late")
    assert sum(again.counts.get(name, 0) for name in left_out) == again.events


def served_part(folder: Path, rows: list[Row]) -> Path:
    """A prediction log of these rows, a request each."""
    schema = log_schema(SCHEMA)
    folder.mkdir()
    at = [row.time for row in rows]
    known: dict[str, list[object]] = {
        "log_request_id": [f"q{n}" for n in range(len(rows))],
        "log_at": at,
        "log_user_id": [row.user for row in rows],
        "log_item_id": [row.item for row in rows],
        **{name: [values_of(row)[name] for row in rows] for name in ("genre", "kind", "city", "sex")},
    }
    arrays = [pa.array(known.get(name, [None] * len(rows)), schema.field(name).type) for name in schema.names]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / "served-1.parquet")
    return folder


def test_a_replayed_day_equals_training(made: Path, tmp_path: Path) -> None:
    """Impressions of a prediction log and clicks of a parquet file, after the training log: each request would have got what a
    training set of the longer log has for it."""
    day = [
        Row(LOG[-1].time + 3600 * SECOND + n * 61 * SECOND, n % 3 == 0, r.user, r.item, r.topics, r.attributes)
        for n, r in enumerate(random_log(80, seed=5))
    ]
    served = served_part(tmp_path / "served", day)
    clicks = [
        {"request_id": f"q{n}", "item_id": r.item, "at": r.time, "received_at": r.time + 3 * SECOND}
        for n, r in enumerate(day)
        if r.clicked
    ]
    pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), tmp_path / "clicks.parquet")
    log, found = tmp_path / "log", definition()
    import_files(log, made / "store", CONFIG, [made / "clean"], push=False)
    done = import_files(log, made / "store", CONFIG, [served, tmp_path / "clicks.parquet"], push=False)
    assert done.counts["clicks"] == sum(r.clicked for r in [*LOG, *day])
    assert done.counts.get("outcomes_clicked_late", 0) == 0
    expected = training_counters(made, day, tmp_path)
    from serving.feedback.event_log import read_all
    from serving.feedback.join import play
    from tests.feedback.streams import book_for, run, tick

    book, place = book_for(SCHEMA), 0
    for part in read_all(log):
        for record in part:
            if record.kind == "impression" and record.request_id.startswith("q"):
                run(book, SCHEMA, [tick(record.at)])
                assert_same_bits(counters_at(book, day[place])[None], expected[place][None], found.names)
                place += 1
            with book.transaction():
                play(book, SCHEMA, record)
    assert place == len(day)


def test_json_lines_and_parquet_of_impressions(made: Path, tmp_path: Path) -> None:
    at = LOG[-1].time / 1e6 + 5
    lines = [
        {"kind": "impression", "request_id": "a", "item_id": "i", "user_id": "u", "at": at, "values": {"genre": "a"}},
        {"kind": "click", "request_id": "a", "item_id": "i", "at": at + 1},
        {"kind": "what"},
    ]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n")
    table = {"request_id": ["b"], "item_id": [3], "user_id": ["u"], "at": [at + 2], "genre": ["a"], "note": ["x"]}
    pq.write_table(pa.table(table), tmp_path / "shown.parquet")
    done = import_files(tmp_path / "log", made / "store", CONFIG, [file, tmp_path / "shown.parquet"], push=False)
    assert (done.events, done.quarantined) == (3, 2)
    assert done.counts["impressions"] == 2 and done.counts["clicks"] == 1


def test_a_replay_finds_and_mends_a_wrong_state(made: Path, tmp_path: Path) -> None:
    import sqlite3

    log, store = tmp_path / "log", made / "store"
    import_files(log, store, CONFIG, [made / "clean"], push=False)
    assert replay_log(log, store, CONFIG, check=True, push=False).different == 0
    with sqlite3.connect(log / STATE_FILE) as db:
        db.execute("UPDATE states SET content = zeroblob(length(content)) WHERE kind = 'item' AND key = 'i'")
    db.close()
    assert replay_log(log, store, CONFIG, check=True, push=False).different == 1
    assert replay_log(log, store, CONFIG, check=False, push=True).different == 1
    assert replay_log(log, store, CONFIG, check=True, push=False).different == 0
    (log / STATE_FILE).write_bytes(b"lost")
    assert replay_log(log, store, CONFIG, check=False, push=False).different > 0
    assert log_status(log).complete
    with pytest.raises(FeatureStoreError, match="another lateness"):
        import_files(log, store, FeedbackConfig(lateness=3), [made / "clean"], push=False)
    replay_log(log, store, FeedbackConfig(lateness=3), check=False, push=True)
    assert log_status(log).lateness == 3


def test_mistakes_are_named(made: Path, tmp_path: Path) -> None:
    store, log = made / "store", tmp_path / "log"
    for source, text in (
        (tmp_path / "nothing", "does not exist"),
        (tmp_path, r"contains neither clean\.parquet nor served-\*\.parquet"),
    ):
        with pytest.raises(DataError, match=text):
            import_files(log, store, CONFIG, [source], push=False)
    pq.write_table(pa.table({"request_id": ["a"], "at": [1.0], "color": ["r"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no column 'item_id'"):
        import_files(log, store, CONFIG, [tmp_path / "x.parquet"], push=False)
    with pytest.raises(DataError, match="is imported first and alone"):
        import_files(log, store, CONFIG, [made / "clean", tmp_path / "x.parquet"], push=False)
    with pytest.raises(DataError, match="contains no event log"):
        replay_log(tmp_path / "none", store, CONFIG, check=True, push=False)
    with pytest.raises(DataError, match="contains no state of an event log"):
        log_status(tmp_path / "none")
    held = EventLog(log)
    with pytest.raises(ServerError, match="in use by another process"):
        import_files(log, store, CONFIG, [made / "clean"], push=False)
    held.close()


def test_the_commands(made: Path, tmp_path: Path) -> None:
    runner, log = CliRunner(), str(tmp_path / "log")
    place = ["--log", log, "--store", str(made / "store")]
    done = runner.invoke(app, ["import", str(made / "clean"), *place], catch_exceptions=False)
    assert done.exit_code == 0 and "events imported, 0 set aside" in done.output and "impressions joined" in done.output
    done = runner.invoke(app, ["status", "--log", log, "--json"], catch_exceptions=False)
    found = json.loads(done.output)
    assert found["complete"] and found["late_share"] == 0 and found["rows_to_push"] == 0
    assert found["watermark"].startswith("2023-11-")
    done = runner.invoke(app, ["status", "--log", log], catch_exceptions=False)
    assert "counters are complete up to 2023-11-" in done.output and "windows closed without a click" in done.output
    done = runner.invoke(app, ["replay", "--check", *place], catch_exceptions=False)
    assert done.exit_code == 0 and "0 differ" in done.output
    data = bytearray(segment_file(tmp_path / "log", 0).read_bytes())
    data[100] ^= 1
    segment_file(tmp_path / "log", 0).write_bytes(data)
    command = [sys.executable, "-W", "ignore", "-m", "thinktwice", "feedback", "replay", "--check", *place]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=120)
    assert ended.returncode == 1 and "is damaged at byte" in ended.stderr and "Traceback" not in ended.stderr
