"""State of the service in one SQLite file: open impressions, waiting clicks, counter states, and rows to push.

All content is derived from the log up to :attr:`Book.position`, which changes in the same transaction. So a kill at any time leaves
the state of some position, and reading continues from there. A state that has changed and is not yet pushed is marked, also in that
transaction: if the store is down, it gets the row later.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from serving.feedback.event_log import START, Position
from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.state import State, empty_states, state_type
from thinktwice.errors import FeatureStoreError, ServerError

FORMAT = 1
KEPT_STATES = 20_000  # states cached in memory, about 2 KB each
LOG_KEY = "log"  # key of the one state of the whole log

RowKind = Literal["user", "item", "recent", "log", "user_sequences", "user_statistics", "item_statistics"]

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shown (
    request TEXT, item TEXT, time INTEGER NOT NULL, user TEXT, content TEXT NOT NULL,
    clicked INTEGER NOT NULL DEFAULT 0, released INTEGER NOT NULL DEFAULT 0, closed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (request, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS due (
    number INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL, item TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS due_at ON due (at, number);
CREATE TABLE IF NOT EXISTS waiting (request TEXT, item TEXT, time INTEGER NOT NULL, PRIMARY KEY (request, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (
    kind TEXT, key TEXT, stamp INTEGER NOT NULL, content BLOB NOT NULL, push INTEGER NOT NULL, PRIMARY KEY (kind, key));
CREATE INDEX IF NOT EXISTS states_push ON states (push) WHERE push = 1;
CREATE TABLE IF NOT EXISTS days (
    kind TEXT, key TEXT, day INTEGER, views INTEGER NOT NULL, clicks INTEGER NOT NULL, PRIMARY KEY (kind, key, day)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS days_day ON days (kind, day);
"""


@dataclass(frozen=True)
class Shown:
    """An impression whose window is open. ``content`` is the JSON of its values."""

    request: str
    item: str
    time: int
    user: str | None
    content: str
    clicked: bool
    released: bool
    closed: bool


@dataclass(frozen=True)
class Row:
    """One row of the online store. ``stamp`` increases with every change of the row."""

    kind: RowKind
    key: str
    stamp: int
    content: bytes


class Book:
    """The state file, or an in-memory state.

    Args:
        path: file, or ``:memory:``.
        definition: of the counters.
        lateness: microseconds by which events may arrive late and still be counted in order.

    Raises:
        FeatureStoreError: the file was written for another definition.
        ServerError: it cannot be opened.
    """

    def __init__(self, path: Path | str, definition: Definition, lateness: int = 0) -> None:
        self.definition, self.lateness = definition, lateness
        self._types = {kind: state_type(definition, kind) for kind in ("user", "item", "recent", "log")}
        self._states: dict[tuple[RowKind, str], State] = {}
        self._changed: dict[tuple[RowKind, str], tuple[int, bytes | None]] = {}  # (stamp of the change, content)
        self.counts: Counter[str] = Counter()
        try:
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + _TABLES)
        except sqlite3.Error as error:
            raise ServerError(
                f"the state {path} cannot be opened ({error}): build it from the log with 'thinktwice feedback replay'"
            ) from error
        try:
            self._check(path)
        except BaseException:
            self.db.close()
            raise
        self._load()

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all changes in the block, or none."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._save()
        except BaseException:
            self.db.execute("ROLLBACK")
            self._load()
            raise
        self.db.execute("COMMIT")

    # Impressions and clicks.

    def shown(self, request: str, item: str) -> Shown | None:
        row = self.db.execute("SELECT * FROM shown WHERE request = ? AND item = ?", (request, item)).fetchone()
        return None if row is None else Shown(*row[:5], *map(bool, row[5:]))

    def add_shown(self, request: str, item: str, time: int, user: str | None, values: dict[str, str | None]) -> None:
        content = json.dumps(values, ensure_ascii=False, sort_keys=True)
        self.db.execute(
            "INSERT INTO shown (request, item, time, user, content) VALUES (?, ?, ?, ?, ?)",
            (request, item, time, user, content),
        )

    def mark(self, one: Shown, what: Literal["clicked", "released", "closed"]) -> None:
        query = {
            "clicked": "UPDATE shown SET clicked = 1 WHERE request = ? AND item = ?",
            "released": "UPDATE shown SET released = 1 WHERE request = ? AND item = ?",
            "closed": "UPDATE shown SET closed = 1 WHERE request = ? AND item = ?",
        }[what]
        self.db.execute(query, (one.request, one.item))

    def forget(self, one: Shown) -> None:
        self.db.execute("DELETE FROM shown WHERE request = ? AND item = ?", (one.request, one.item))

    def add_due(self, at: int, kind: str, request: str, item: str) -> None:
        self.db.execute("INSERT INTO due (at, kind, request, item) VALUES (?, ?, ?, ?)", (at, kind, request, item))

    def next_due(self, before: int) -> tuple[int, str, str, str] | None:
        """Remove and return the first entry that is due strictly before an instant: (time, kind, request, item)."""
        row = self.db.execute(
            "SELECT number, at, kind, request, item FROM due WHERE at < ? ORDER BY at, number LIMIT 1", (before,)
        ).fetchone()
        if row is None:
            return None
        self.db.execute("DELETE FROM due WHERE number = ?", (row[0],))
        return int(row[1]), row[2], row[3], row[4]

    def first_due(self) -> int | None:
        """Time at which the next entry is due."""
        at = self.db.execute("SELECT min(at) FROM due").fetchone()[0]
        return None if at is None else int(at)

    def wait(self, request: str, item: str, time: int) -> bool:
        """Store a click until its impression arrives. Returns False if one is already waiting."""
        cursor = self.db.execute("INSERT OR IGNORE INTO waiting VALUES (?, ?, ?)", (request, item, time))
        return cursor.rowcount > 0

    def waiting(self, request: str, item: str) -> int | None:
        """Remove the click that waits for an impression and return its time."""
        row = self.db.execute(
            "DELETE FROM waiting WHERE request = ? AND item = ? RETURNING time", (request, item)
        ).fetchall()
        return int(row[0][0]) if row else None

    # States and rows of the online store.

    def state(self, kind: Literal["user", "item", "recent", "log"], key: str) -> State:
        """The state [1] of a key, to be modified in place; saved at the end of the transaction."""
        state_key = (kind, key)
        state = self._states.get(state_key)
        if state is None:
            if len(self._states) > KEPT_STATES:
                self._save()
                self._states.clear()
            content = self.content(kind, key)
            if content is None:
                state = empty_states(self.definition, kind)
            else:
                state = np.frombuffer(bytearray(content), self._types[kind])
            self._states[state_key] = state
        self._changed[state_key] = (self.stamp, None)
        return state

    def content(self, kind: RowKind, key: str) -> bytes | None:
        """The stored content of a key."""
        changed = self._changed.get((kind, key))
        if changed is not None and changed[1] is not None:
            return changed[1]
        row = self.db.execute("SELECT content FROM states WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, kind: RowKind, key: str, content: bytes) -> None:
        """Store a row that is not a counter state."""
        self._changed[(kind, key)] = (self.stamp, content)

    def to_push(self, most: int) -> list[Row]:
        """Rows to push, without the state of the log, which is pushed with the watermark."""
        rows = self.db.execute(
            "SELECT kind, key, stamp, content FROM states WHERE push = 1 AND kind <> 'log' LIMIT ?", (most,)
        )
        return [Row(*row) for row in rows]

    def num_to_push(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM states WHERE push = 1 AND kind <> 'log'").fetchone()[0])

    def pushed(self, rows: Iterable[Row]) -> None:
        """Record that these rows were pushed."""
        with self.transaction():
            self.db.executemany(
                "UPDATE states SET push = 0 WHERE kind = ? AND key = ? AND stamp = ?",
                [(r.kind, r.key, r.stamp) for r in rows],
            )

    def push_all(self) -> int:
        """Mark every row as not pushed. Returns the number of rows."""
        with self.transaction():
            return self.db.execute("UPDATE states SET push = 1").rowcount

    def restamp(self) -> None:
        """Make every row newer than all pushed rows, for stores that keep the newest row."""
        with self.transaction():
            self.stamp += 1
            self.db.execute("UPDATE states SET push = 1, stamp = ?", (self.stamp,))

    def rows(self) -> Iterator[Row]:
        """All rows, ordered by kind and key."""
        for row in self.db.execute("SELECT kind, key, stamp, content FROM states ORDER BY kind, key"):
            yield Row(*row)

    # Position and facts.

    @property
    def watermark(self) -> int:
        """All outcomes known strictly before this instant are in the states."""
        return self.at - self.lateness

    def fact(self, name: str, default: str | int) -> str | int:
        row = self.db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else row[0]

    def set_fact(self, name: str, value: str | int) -> None:
        self.db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _load(self) -> None:
        self._states.clear()
        self._changed.clear()
        self.counts = Counter(dict(self.db.execute("SELECT name, number FROM counts")))
        self.at, self.stamp = int(self.fact("at", 0)), int(self.fact("stamp", 0))
        self.day = int(self.fact("day", -1))  # last day whose statistics were closed
        self.whole = bool(self.fact("whole", 0))  # whether the log begins with a training log
        self.position = START
        if position := self.fact("position", ""):
            self.position = Position(*map(int, str(position).split(":")))

    def _save(self) -> None:
        if self._changed:
            self.db.executemany(
                "INSERT INTO states VALUES (?, ?, ?, ?, 1) ON CONFLICT (kind, key) DO UPDATE "
                "SET stamp = excluded.stamp, content = excluded.content, push = 1",
                [
                    (kind, key, stamp, self._states[(kind, key)].tobytes() if content is None else content)
                    for (kind, key), (stamp, content) in self._changed.items()
                ],
            )
            self._changed.clear()
        self.db.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?)", self.counts.items())
        position = f"{self.position.segment}:{self.position.offset}"
        facts = {"at": self.at, "stamp": self.stamp, "day": self.day, "whole": int(self.whole), "position": position}
        self.db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    def _check(self, path: Path | str) -> None:
        expected: dict[str, str | int] = {
            "format": FORMAT,
            "definition": self.definition.hash,
            "lateness": self.lateness,
        }
        with self.transaction_of_facts():
            for name, value in expected.items():
                actual = self.fact(name, value)
                if actual != value:
                    texts = {
                        "format": ("was written by another version", "format"),
                        "definition": ("counts by another definition than the feature store", "definition"),
                        "lateness": ("was made for another lateness (in microseconds)", "lateness"),
                    }[name]
                    raise FeatureStoreError(
                        f"the state {path} {texts[0]} ({texts[1]} {actual} instead of {value}): "
                        "build it from the log again with 'thinktwice feedback replay'"
                    )
                self.set_fact(name, value)

    @contextlib.contextmanager
    def transaction_of_facts(self) -> Iterator[None]:
        """A transaction that neither loads nor saves the cached state."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
