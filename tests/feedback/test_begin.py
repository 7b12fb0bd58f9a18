"""A log that begins with a training log: its state by columns equals that of its records played one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from serving.feedback import offline
from serving.feedback.begin import TrainingRows, begin
from serving.feedback.book import Book
from serving.feedback.cli import app
from serving.feedback.config import FeedbackConfig
from serving.feedback.event_log import Position
from serving.feedback.records import Record, recorded
from serving.feedback.rules import EventRules
from serving.feedback.service import open_book
from tests.data.instant.logs import logs
from tests.data.instant.oracle import Row
from tests.feedback.stores import full_schema, make_store, random_log
from tests.feedback.streams import SECOND, book_for, click, impression, rows, run, schema_of, values_of
from tests.feedback.test_join import DELAYS, moved
from thinktwice.errors import DataError
from thinktwice.monitor.feedback import STATE_FILE
from thinktwice.records.events import Click, Impression
from thinktwice.schema import LogSchema

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


def by_columns(schema: LogSchema, log: list[Row], lateness: int, batch: int) -> Book | None:
    events = events_of(log)
    table = TrainingRows(EventRules(schema).fields)
    for start in range(0, len(events), batch):
        table.extend(events[start : start + batch])
    found = table.table()
    if found is None:
        return None
    book = book_for(schema, lateness)
    begin(book, schema, found, Position(0, 7))
    return book


@settings(max_examples=150)
@given(
    log=logs(most=25),
    delays=DELAYS,
    lateness=st.sampled_from((0, 1, 30 * SECOND, 7200 * SECOND)),
    windows=st.sampled_from(((), (1, 7, 0), (0,), (2,))),
    batch=st.integers(1, 60),
)
def test_a_training_log_gives_the_state_of_its_records(
    log: list[Row], delays: tuple[int, int], lateness: int, windows: tuple[int, ...], batch: int
) -> None:
    log = moved(log)
    schema = schema_of({"feedback_delay": {"click": delays[0], "no_click": delays[1]}}, SEQUENCES, windows)
    fast = by_columns(schema, log, lateness, batch)
    slow = book_for(schema, lateness)
    run(slow, schema, [Record("start", 0), *(recorded(event, event.time) for event in events_of(log))])
    with slow.transaction():
        slow.position = Position(0, 7)
    assert fast is not None
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


def test_what_is_not_a_training_log_is_left_to_its_records() -> None:
    a, b = (Row(time * SECOND, True, "u", "i", ("a", "b"), ("x", "f")) for time in (5, 9))
    fields = EventRules(schema_of()).fields
    twice = [events_of([a])[0], events_of([a])[0]]
    backwards = [*events_of([b]), events_of([b, a])[2]]
    lone_click = [events_of([a])[1]]
    click_twice = [*events_of([a]), events_of([a])[1]]
    for events in (twice, backwards, lone_click, click_twice, []):
        table = TrainingRows(fields)
        table.extend(events)
        assert table.table() is None


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
