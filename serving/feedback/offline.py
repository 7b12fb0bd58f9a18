"""Offline operations on a log: importing files, rebuilding the counters, status."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from serving.feedback.begin import begin
from serving.feedback.book import Book
from serving.feedback.config import FeedbackConfig
from serving.feedback.event_log import START, EventLog, Position, read_all, segment_file, segments
from serving.feedback.quarantine import Quarantine, num_quarantined
from serving.feedback.records import Record, recorded
from serving.feedback.rules import EventRules
from serving.feedback.service import open_book, push_changes, rebuild
from serving.feedback.sources import Event, events_of, merged
from serving.feedback.target import open_target
from serving.feedback.training_rows import REQUEST, is_training_log, training_records, training_rows
from thinktwice.errors import DataError
from thinktwice.monitor.feedback import STATE_FILE, read_state
from thinktwice.records.events import Click

TOGETHER = 5_000  # events per flush to disk


@dataclass(frozen=True)
class Imported:
    """Result of an import. ``counts`` are the counts of the whole log."""

    events: int
    quarantined: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Replayed:
    """Result of a replay. ``different`` is the number of rows that differ from before or exist in only one of the states."""

    records: int
    rows: int
    different: int


@dataclass(frozen=True)
class LogStatus:
    """Progress of the counters of a log.

    ``watermark`` is ISO 8601, "" before the first record. ``complete`` is whether all records of the log have been applied.
    """

    watermark: str
    complete: bool
    rows_to_push: int
    quarantined: int
    lateness: float
    definition: str
    counts: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The fields, and the share of clicks that were known later than assumed in training."""
        clicked = self.counts.get("outcomes_clicked", 0) + self.counts.get("outcomes_clicked_late", 0)
        late = self.counts.get("outcomes_clicked_late", 0)
        return {"format": 1, **asdict(self), "late_share": late / clicked if clicked else 0.0}


def import_files(
    folder: Path,
    store_dir: Path,
    config: FeedbackConfig,
    sources: Sequence[Path],
    *,
    push: bool,
    until: int | None = None,
) -> Imported:
    """Append the events of files to a log and apply them.

    Args:
        until: UTC microseconds up to which the sources are complete: windows that end before are closed.

    Raises:
        DataError: a file is not a source of events.
        ServerError: a service is using the log.
        FeatureStoreError: the store does not match, or does not accept the rows. The events are in the log.
        ResourceError: the disk is full. Events that were already appended stay; import again.
    """
    target = open_target(store_dir, config)
    schema, store = target.schema, target.store
    log: EventLog | None = None
    book: Book | None = None
    try:
        rules, log = EventRules(schema, config), EventLog(folder)
        quarantine = Quarantine(folder)
        training = [is_training_log(source) for source in sources]
        if any(training) and not all(training):
            raise DataError("a training log is imported first and alone: import the other files after it")
        book = open_book(folder / STATE_FILE, schema, config)
        begins = any(training) and not _has_records(folder)
        rows = training_rows(sources, rules, schema) if any(training) else None
        if begins:
            log.append([Record("start", 0)])
        if rows is not None:
            batches = training_records(rows, rules, log.last_at)
        else:
            batches = _batches(merged([events_of(source, rules, quarantine) for source in sources]), log)
        number = 0
        for batch in batches:
            log.append(batch)
            number += len(batch)
        if rows is not None and begins and book.position == START and _each_once(rows):
            begin(book, schema, rows, log.end)
        else:
            rebuild(folder, book, schema, log.end)
        if until is not None and until > log.last_at:
            log.append([Record("tick", until)])
            rebuild(folder, book, schema, log.end)
        if push and store is not None:
            push_changes(book, store)
        return Imported(number, quarantine.number, dict(book.counts))
    finally:
        if book is not None:
            book.close()
        if log is not None:
            log.close()
        target.close()


def _batches(events: Iterator[Event], log: EventLog) -> Iterator[list[Record]]:
    """Records of events, accepted at their time or at that of the last record if that is later."""
    at = log.last_at
    while batch := list(islice(events, TOGETHER)):
        records = []
        for event in batch:
            received = event.received_at if isinstance(event, Click) else None
            at = max(at, event.time if received is None else round(received * 1e6))
            records.append(recorded(event, at))
        yield records


def _each_once(rows: pl.DataFrame) -> bool:
    return len(rows) > 0 and not rows[REQUEST].is_duplicated().any()


def _has_records(folder: Path) -> bool:
    return any(segment_file(folder, number).stat().st_size for number in segments(folder))


def replay_log(folder: Path, store_dir: Path, config: FeedbackConfig, *, check: bool, push: bool) -> Replayed:
    """Rebuild the state of a log from its records; see the command ``replay``.

    Raises:
        DataError: there is no log, or it is damaged.
        ServerError: a service is using the log.
        FeatureStoreError: the store does not match, or does not accept the rows.
    """
    if not segments(folder):
        raise DataError(
            f"{folder} contains no event log: correct --log, or begin one with 'thinktwice feedback import'"
        )
    target = open_target(store_dir, config)
    schema, store = target.schema, target.store
    log: EventLog | None = None
    rebuilt: Book | None = None
    state_file, new_file = folder / STATE_FILE, folder / f".{STATE_FILE}.new"
    try:
        log = EventLog(folder)
        for path in _files(new_file):
            path.unlink(missing_ok=True)
        rebuilt = open_book(new_file, schema, config)
        before = _rows_of(state_file)
        until = _position_of(state_file) if check else None
        rebuild(folder, rebuilt, schema, until)
        rows: dict[tuple[str, str], bytes] = {(r.kind, r.key): r.content for r in rebuilt.rows()}
        different = sum(rows.get(key) != content for key, content in before.items()) + len(rows.keys() - before.keys())
        number = sum(len(part) for part in read_all(folder, until=until))
        if not check:
            if push and store is not None:
                if _facts(state_file) != _facts(new_file):
                    rebuilt.restamp()  # rows with another lateness or definition may have later stamps
                push_changes(rebuilt, store)
                with rebuilt.transaction():
                    rebuilt.set_fact("store", store.identity)
            rebuilt.close()
            rebuilt = None
            for path in _files(state_file)[1:]:  # the database is replaced as a whole
                path.unlink(missing_ok=True)
            new_file.replace(state_file)
        return Replayed(number, len(rows), different)
    finally:
        if rebuilt is not None:
            rebuilt.close()
        for path in _files(new_file):
            path.unlink(missing_ok=True)
        if log is not None:
            log.close()
        target.close()


def log_status(folder: Path) -> LogStatus:
    """Progress of the counters of a log; a service may be using it.

    Raises:
        DataError: the folder contains no state of a log.
    """
    facts, counts = read_state(folder)
    waiting = _query(folder / STATE_FILE, "SELECT count(*) FROM states WHERE push = 1 AND kind <> 'log'")
    at, lateness = int(facts.get("at", 0)), int(facts.get("lateness", 0))
    position = Position(*map(int, str(facts.get("position", "0:0")).split(":")))
    numbers = segments(folder)
    end = Position(numbers[-1], segment_file(folder, numbers[-1]).stat().st_size) if numbers else position
    watermark = datetime.fromtimestamp((at - lateness) / 1e6, timezone.utc).isoformat() if at else ""
    return LogStatus(
        watermark=watermark,
        complete=position >= end or end.offset == 0,
        rows_to_push=int(waiting[0][0]) if waiting else 0,
        quarantined=num_quarantined(folder),
        lateness=lateness / 1e6,
        definition=str(facts.get("definition", "")),
        counts={name: number for name, number in counts.items() if number},
    )


def _files(database: Path) -> list[Path]:
    """A database and SQLite's files next to it."""
    return [database, *(database.with_name(database.name + end) for end in ("-wal", "-shm"))]


def _rows_of(database: Path) -> dict[tuple[str, str], bytes]:
    """The rows of a state with any definition; empty if it cannot be read."""
    return {
        (kind, key): bytes(content) for kind, key, content in _query(database, "SELECT kind, key, content FROM states")
    }


def _position_of(database: Path) -> Position | None:
    rows = _query(database, "SELECT value FROM facts WHERE name = 'position'")
    return Position(*map(int, str(rows[0][0]).split(":"))) if rows else None


def _facts(database: Path) -> list[Any]:
    return _query(
        database, "SELECT value FROM facts WHERE name IN ('definition', 'lateness') OR name LIKE 'kept %' ORDER BY name"
    )


def _query(database: Path, query: str) -> list[Any]:
    if not database.is_file():
        return []
    db = sqlite3.connect(database)
    try:
        return db.execute(query).fetchall()
    except sqlite3.Error:  # missing or damaged, which is a reason to rebuild it
        return []
    finally:
        db.close()
