"""A log that begins with a training log: its state by columns equals that of its records played one by one."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from serving.feedback import offline
from serving.feedback.begin import begin
from serving.feedback.book import Book
from serving.feedback.cli import app
from serving.feedback.config import FeedbackConfig
from serving.feedback.event_log import Position
from serving.feedback.records import Record, recorded, to_json
from serving.feedback.rules import EventRules
from serving.feedback.service import open_book
from serving.feedback.training_rows import ITEM, REQUEST, USER, VALUE, training_records, training_rows
from tests.data.instant.logs import logs
from tests.data.instant.oracle import Row
from tests.feedback.stores import full_schema, make_store, random_log, write_clean
from tests.feedback.streams import SECOND, book_for, click, impression, rows, run, schema_of, values_of
from tests.feedback.test_join import DELAYS, moved
from thinktwice.errors import DataError
from thinktwice.monitor.feedback import STATE_FILE
from thinktwice.records.events import Click, Impression
from thinktwice.schema import EVENT_TIME, LABEL, LogSchema

SEQUENCES = (
    {"name": "last", "of": "item_id", "length": 3},
    {"name": "seen", "of": "genre", "length": 2, "clicks_only": False},
)
FACTS = ("at", "stamp", "day", "whole", "position")


def events_of(log: list[Row]) -> list[Impression | Click]:
    out: list[Impression | Click] = []
    for number, row in enumerate(log):
        at = row.time / 1e6
        out.append(
            Impression(request_id=f"r{number}", item_id=row.item, user_id=row.user, at=at, values=values_of(row))
        )
        if row.clicked:
            out.append(Click(request_id=f"r{number}", item_id=row.item, at=at))
    return out


def content(book: Book) -> dict[str, object]:
    """Everything that later records, and the store, depend on."""
    tables = {
        "shown": "SELECT * FROM shown ORDER BY request, item",
        "due": "SELECT at, kind, request, item FROM due ORDER BY at, number",
        "waiting": "SELECT * FROM waiting",
        "days": "SELECT * FROM days ORDER BY kind, key, day",
    }
    facts = {name: book.fact(name, "none") for name in FACTS} | {"final_day": book.fact("final_day", book.day)}
    return (
        {name: book.db.execute(query).fetchall() for name, query in tables.items()}
        | {"rows": rows(book), "counts": {k: n for k, n in book.counts.items() if n}}
        | facts
    )


def table_of(schema: LogSchema, log: list[Row]) -> pl.DataFrame:
    """What :func:`training_rows` makes of the log."""
    texts = {VALUE + name: [values_of(row)[name] for row in log] for name in EventRules(schema).fields}
    columns = {
        REQUEST: [f"r{number}" for number in range(len(log))],
        ITEM: [row.item for row in log],
        USER: [row.user for row in log],
        EVENT_TIME: [row.time for row in log],
        LABEL: [int(row.clicked) for row in log],
    }
    types = {EVENT_TIME: pl.Int64, LABEL: pl.Int8}
    return pl.DataFrame({**columns, **texts}, schema={n: types.get(n, pl.String) for n in (*columns, *texts)})


def by_columns(schema: LogSchema, log: list[Row], lateness: int) -> Book:
    book = book_for(schema, lateness)
    begin(book, schema, table_of(schema, log), Position(0, 7))
    return book


@settings(max_examples=150)
@given(
    log=logs(most=25),
    delays=DELAYS,
    lateness=st.sampled_from((0, 1, 30 * SECOND, 7200 * SECOND)),
    windows=st.sampled_from(((), (1, 7, 0), (0,), (2,))),
)
def test_a_training_log_gives_the_state_of_its_records(
    log: list[Row], delays: tuple[int, int], lateness: int, windows: tuple[int, ...]
) -> None:
    log = moved(log)
    schema = schema_of({"feedback_delay": {"click": delays[0], "no_click": delays[1]}}, SEQUENCES, windows)
    fast = by_columns(schema, log, lateness)
    slow = book_for(schema, lateness)
    run(slow, schema, [Record("start", 0), *(recorded(event, event.time) for event in events_of(log))])
    with slow.transaction():
        slow.position = Position(0, 7)
    assert content(fast) == content(slow)
    # What comes later has the same effect on both.
    last = log[-1].time
    later = [
        impression(Row(last + step * SECOND, True, "u", "i", ("a", "b"), ("x", "f")), 1000 + step)
        for step in (1, 700, 90_000, 400_000)
    ]
    for book in (fast, slow):
        run(book, schema, [*later, click(log[-1], len(log) - 1, at=last + 400_001 * SECOND)])
    assert content(fast) == content(slow)


TEXTS = st.one_of(
    st.none(), st.sampled_from(("", "a", "é", " ", "1.0", "x" * 512)), st.text("ab\n\t\u2028", max_size=3)
)
NUMBERS = st.one_of(st.none(), st.integers(-9, 9), st.floats(-4, 4, width=32))


def as_events(rows: pl.DataFrame, rules: EventRules) -> list[Impression | Click]:
    """The events of a clean log, each row checked by the rules."""
    out = []
    for row in rows.sort(EVENT_TIME, "row_id").iter_rows(named=True):
        ids = {"request_id": row["row_id"], "item_id": row["item_id"], "at": row[EVENT_TIME].timestamp()}
        shown = {"kind": "impression", "user_id": row["user_id"], "values": {n: row[n] for n in rules.fields}}
        out.append(rules.event(ids | shown, item_needed=False))
        if row[LABEL] == 1:
            out.append(rules.event(ids | {"kind": "click"}, item_needed=False))
    return out


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), last=st.integers(0, 60), anonymous=st.booleans())
def test_a_training_log_gives_the_records_of_its_events(
    tmp_path: Path, data: st.DataObject, last: int, anonymous: bool
) -> None:
    schema = schema_of({}, SEQUENCES)
    if anonymous:
        user = schema.entities.user
        assert user is not None
        entities = schema.entities.model_copy(update={"user": user.model_copy(update={"anonymous": True})})
        schema = schema.model_copy(update={"entities": entities})
    size = data.draw(st.integers(0, 9))

    def drawn(values: st.SearchStrategy[object]) -> list[object]:
        return data.draw(st.lists(values, min_size=size, max_size=size))

    folder = write_clean(tmp_path, [Row(0, False, "u", "i", ("a", "b"), ("x", "f"))] * size, schema)
    times = pl.Series(drawn(st.integers(0, 50)), dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    columns = {
        name: pl.Series(drawn(TEXTS), dtype=pl.String) for name in ("user_id", "item_id", "genre", "kind", "city")
    }
    clicked = pl.Series(drawn(st.integers(0, 1)), dtype=pl.Int8)
    rows = pl.read_parquet(folder / "clean.parquet").with_columns(**columns, event_time=times, label=clicked)
    if size:
        rows = rows.with_columns(sex=pl.Series(drawn(NUMBERS), dtype=pl.Float64))
    rows.write_parquet(folder / "clean.parquet")
    rules = EventRules(schema)
    table = training_rows([folder], rules, schema)
    made = [record for batch in training_records(table, rules, last) for record in batch]
    expected, at = [], last
    for event in as_events(rows, rules):
        at = max(at, event.time)
        expected.append(recorded(event, at))
    assert list(map(to_json, made)) == list(map(to_json, expected))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("row_id", "", "request_id"),
        ("row_id", "x" * 513, "request_id: has 513 characters"),
        ("item_id", "a\x00", "item_id: contains a character that is not text"),
        ("user_id", "x" * 513, "user_id: has 513 characters"),
        ("genre", "x" * 600, "values.genre: has 600 characters"),
    ],
)
def test_a_row_that_no_event_may_have_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, value: str, reason: str
) -> None:
    schema = schema_of()
    folder = write_clean(tmp_path, [Row(t, False, "u", "i", ("a", "b"), ("x", "f")) for t in (1, 2, 3)], schema)
    rows = pl.read_parquet(folder / "clean.parquet")
    rows.with_columns(pl.Series(name, [*rows[name][:2], value])).write_parquet(folder / "clean.parquet")
    with pytest.raises(ValueError, match=reason):
        training_rows([folder], EventRules(schema), schema)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that build the store
def test_a_row_that_appears_twice_is_left_to_its_records(tmp_path: Path) -> None:
    schema, log = full_schema(), random_log(40, seed=3)
    made, clean = make_store(tmp_path / "made", log, schema), tmp_path / "made" / "clean"
    rows = pl.read_parquet(clean / "clean.parquet")
    pl.concat([rows, rows[7:9]]).sort("event_time").write_parquet(clean / "clean.parquet")
    done = offline.import_files(tmp_path / "log", made, FeedbackConfig(), [clean], push=False)
    assert done.counts["impressions"] == 40 and done.counts["impressions_twice"] == 2
    assert offline.replay_log(tmp_path / "log", made, FeedbackConfig(), check=True, push=False).different == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that build the store
def test_two_training_logs_count_as_one(tmp_path: Path) -> None:
    schema, log = full_schema(), random_log(60, seed=5)
    made, clean = make_store(tmp_path / "made", log, schema), tmp_path / "made" / "clean"
    parts = []
    for number in (0, 1):
        part = write_clean(tmp_path / f"part-{number}", log, schema)
        pl.read_parquet(clean / "clean.parquet")[number::2].write_parquet(part / "clean.parquet")
        parts.append(part)
    for name, sources in (("whole", [clean]), ("parts", parts)):
        offline.import_files(tmp_path / name, made, FeedbackConfig(), sources, push=False)
    whole, both = (open_book(tmp_path / name / STATE_FILE, schema, FeedbackConfig()) for name in ("whole", "parts"))
    assert content(whole) == content(both)
    for book in (whole, both):
        book.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that build the store
@pytest.mark.parametrize("lateness", [0.0, 30.0])
def test_an_import_of_a_training_log_equals_its_replay(tmp_path: Path, lateness: float) -> None:
    schema = full_schema()
    made = make_store(tmp_path / "made", random_log(300, seed=4), schema)
    config = FeedbackConfig(lateness=lateness)
    offline.import_files(tmp_path / "log", made, config, [tmp_path / "made" / "clean"], push=False)
    done = offline.replay_log(tmp_path / "log", made, config, check=True, push=False)
    assert done.rows > 10 and done.different == 0
    book = open_book(tmp_path / "log" / STATE_FILE, schema, config)
    assert book.counts["impressions"] == 300 and book.whole
    book.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that build the store
def test_an_import_is_complete_up_to_the_time_that_is_said(tmp_path: Path) -> None:
    schema, log = full_schema(), random_log(50, seed=2)
    store, events = make_store(tmp_path / "made", log, schema), tmp_path / "log"
    end = log[-1].time
    for until, complete in ((end + 3600 * SECOND, True), (end, True)):  # the clock does not go back
        offline.import_files(events, store, FeedbackConfig(), [tmp_path / "made" / "clean"], push=False, until=until)
        status = offline.log_status(events)
        outcomes = status.counts["outcomes_clicked"] + status.counts["outcomes_not_clicked"]
        assert (outcomes == 50) is complete and status.complete
    done = offline.replay_log(events, store, FeedbackConfig(), check=True, push=False)
    assert done.different == 0


@pytest.mark.parametrize("until", ["soon", "2026-13-01", "2101-01-01T00:00:00Z", "1"])
def test_a_time_that_is_none_is_refused(until: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", "x", "--log", str(tmp_path), "--store", "s", "--until", until])
    assert isinstance(result.exception, DataError) and f"--until {until!r}" in str(result.exception)
