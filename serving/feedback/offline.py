"""What is done to a log that no service is at work on: importing files, building the counters again, looking."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

from serving.feedback.book import Book
from serving.feedback.event_log import EventLog, Position, read_all, segment_file, segments
from serving.feedback.online import OnlineStore
from serving.feedback.quarantine import Quarantine, num_quarantined
from serving.feedback.records import Record, recorded
from serving.feedback.rules import EventRules
from serving.feedback.service import FeedbackConfig, open_book, push_changes, rebuild
from serving.feedback.sources import events_of, is_training_log, merged
from thinktwice.errors import DataError
from thinktwice.monitor.feedback import STATE_FILE, read_state
from thinktwice.records.events import Click, Impression

TOGETHER = 5_000  # events that are flushed to the disk together


@dataclass(frozen=True)
class Imported:
    """What an import did; ``counts`` are those of the whole log."""

    events: int
    quarantined: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Replayed:
    """What a replay found; ``different`` are rows that are not those of before, or that only one of them has."""

    records: int
    rows: int
    different: int


@dataclass(frozen=True)
class LogStatus:
    """How far the counters of a log are.

    ``watermark`` is ISO 8601, "" before the first record; ``complete`` whether every record of the log has been played.
    """

    watermark: str
    complete: bool
    rows_to_push: int
    quarantined: int
    lateness: float
    definition: str
    counts: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The fields, and the share of clicks that were known later than training assumed."""
        clicked = self.counts.get("outcomes_clicked", 0) + self.counts.get("outcomes_clicked_late", 0)
        late = self.counts.get("outcomes_clicked_late", 0)
        return {"format": 1, **asdict(self), "late_share": late / clicked if clicked else 0.0}


def import_files(
    folder: Path, store_dir: Path, config: FeedbackConfig, sources: Sequence[Path], *, push: bool
) -> Imported:
    """Append the events of files to a log, and play them.

    Raises:
        DataError: a file is none of events.
        ServerError: a service is at work on the log.
        FeatureStoreError: the store does not fit, or does not take the rows. The events are in the log.
        ResourceError: the disk is full. What was appended before stays; import again.
    """
    store = OnlineStore(store_dir)
    log: EventLog | None = None
    book: Book | None = None
    try:
        rules, log = EventRules(store.schema), EventLog(folder)
        quarantine = Quarantine(folder)
        training = [is_training_log(source) for source in sources]
        if any(training) and not all(training):
            raise DataError("a training log is imported first and alone: import the other files after it")
        book = open_book(folder / STATE_FILE, store.schema, config)
        if any(training) and not _has_records(folder):
            log.append([Record("start", 0)])
        events = merged([events_of(source, rules, store.schema, quarantine) for source in sources])
        number = 0
        while some := list(islice(events, TOGETHER)):
            log.append(list(_records(some, log.last_at)))
            number += len(some)
        rebuild(folder, book, store.schema, log.end)
        if push:
            push_changes(book, store)
        return Imported(number, quarantine.number, dict(book.counts))
    finally:
        if book is not None:
            book.close()
        if log is not None:
            log.close()
        store.close()


def _records(events: Sequence[Impression | Click], last_at: int) -> Iterator[Record]:
    at = last_at
    for event in events:
        received = event.received_at if isinstance(event, Click) else None
        at = max(at, event.time if received is None else round(received * 1e6))
        yield recorded(event, at)


def _has_records(folder: Path) -> bool:
    return any(segment_file(folder, number).stat().st_size for number in segments(folder))


def replay_log(folder: Path, store_dir: Path, config: FeedbackConfig, *, check: bool, push: bool) -> Replayed:
    """Build the state of a log again from its records; see the command ``replay``.

    Raises:
        DataError: there is no log, or it is damaged.
        ServerError: a service is at work on the log.
        FeatureStoreError: the store does not fit, or does not take the rows.
    """
    if not segments(folder):
        raise DataError(
            f"{folder} contains no event log: correct --log, or begin one with 'thinktwice feedback import'"
        )
    store = OnlineStore(store_dir)
    log: EventLog | None = None
    fresh: Book | None = None
    place, aside = folder / STATE_FILE, folder / f".{STATE_FILE}.new"
    try:
        log = EventLog(folder)
        for path in _files(aside):
            path.unlink(missing_ok=True)
        fresh = open_book(aside, store.schema, config)
        before = _rows_of(place)
        until = _position_of(place) if check else None
        rebuild(folder, fresh, store.schema, until)
        rows: dict[tuple[str, str], bytes] = {(r.kind, r.key): r.content for r in fresh.rows()}
        different = sum(rows.get(key) != content for key, content in before.items()) + len(rows.keys() - before.keys())
        number = sum(len(part) for part in read_all(folder, until=until))
        if not check:
            if push:
                if _facts(place) != _facts(aside):
                    fresh.restamp()  # rows of another lateness or definition may have later stamps
                push_changes(fresh, store)
                with fresh.transaction():
                    fresh.set_fact("store", store.project)
            fresh.close()
            fresh = None
            for path in _files(place)[1:]:  # of a database that is replaced as a whole
                path.unlink(missing_ok=True)
            aside.replace(place)
        return Replayed(number, len(rows), different)
    finally:
        if fresh is not None:
            fresh.close()
        for path in _files(aside):
            path.unlink(missing_ok=True)
        if log is not None:
            log.close()
        store.close()


def log_status(folder: Path) -> LogStatus:
    """How far the counters of a log are; a service may be at work on it.

    Raises:
        DataError: there is no state of a log.
    """
    facts, counts = read_state(folder)
    waiting = _query(folder / STATE_FILE, "SELECT count(*) FROM states WHERE push = 1 AND kind <> 'log'")
    at, lateness = int(facts.get("at", 0)), int(facts.get("lateness", 0))
    seen = Position(*map(int, str(facts.get("position", "0:0")).split(":")))
    numbers = segments(folder)
    end = Position(numbers[-1], segment_file(folder, numbers[-1]).stat().st_size) if numbers else seen
    mark = datetime.fromtimestamp((at - lateness) / 1e6, timezone.utc).isoformat() if at else ""
    return LogStatus(
        watermark=mark,
        complete=seen >= end or end.offset == 0,
        rows_to_push=int(waiting[0][0]) if waiting else 0,
        quarantined=num_quarantined(folder),
        lateness=lateness / 1e6,
        definition=str(facts.get("definition", "")),
        counts={name: number for name, number in counts.items() if number},
    )


def _files(database: Path) -> list[Path]:
    """A database and what SQLite keeps beside it."""
    return [database, *(database.with_name(database.name + end) for end in ("-wal", "-shm"))]


def _rows_of(database: Path) -> dict[tuple[str, str], bytes]:
    """The rows of a state of any definition; none where it cannot be read."""
    return {
        (kind, key): bytes(content) for kind, key, content in _query(database, "SELECT kind, key, content FROM states")
    }


def _position_of(database: Path) -> Position | None:
    found = _query(database, "SELECT value FROM facts WHERE name = 'position'")
    return Position(*map(int, str(found[0][0]).split(":"))) if found else None


def _facts(database: Path) -> list[Any]:
    return _query(database, "SELECT value FROM facts WHERE name IN ('definition', 'lateness') ORDER BY name")


def _query(database: Path, query: str) -> list[Any]:
    if not database.is_file():
        return []
    db = sqlite3.connect(database)
    try:
        return db.execute(query).fetchall()
    except sqlite3.Error:  # lost or damaged: that is why it is built again
        return []
    finally:
        db.close()
