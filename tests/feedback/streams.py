"""Logs of training as streams of events, and what a store must hold of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.feedback.book import Book
from serving.feedback.join import play
from serving.feedback.records import Record
from tests.data.instant.oracle import Row
from thinktwice.data.instant.columns import from_bytes
from thinktwice.data.instant.definition import Definition, definition_of
from thinktwice.data.instant.keys import slots_of
from thinktwice.data.instant.state import empty_states, values
from thinktwice.schema import LogSchema, parse_schema

SECOND = 1_000_000


def schema_of(
    instant: dict[str, Any] | None = None,
    sequences: Sequence[dict[str, Any]] = (),
    windows_days: Sequence[int] = (),
) -> LogSchema:
    content = {
        "name": "t",
        "time": {"column": "ts"},
        "entities": {"user": {"key": "user_id"}, "item": {"key": "item_id"}},
        "fields": [
            {"name": "site"},
            {"name": "genre", "entity": "item"},
            {"name": "kind", "entity": "item", "allowed": ["a", "b"]},
            {"name": "city", "entity": "user"},
            {"name": "sex", "entity": "user", "allowed": ["f", "m"]},
        ],
        "sequences": list(sequences),
        "statistics": {"instant": instant or {}, "windows_days": list(windows_days)},
    }
    return parse_schema(json.dumps(content), where="test")


def definition(schema: LogSchema) -> Definition:
    found = definition_of(schema)
    assert found is not None
    return found


def values_of(row: Row) -> dict[str, str | None]:
    return {
        "genre": row.topics[0],
        "kind": row.topics[1],
        "city": row.attributes[0],
        "sex": row.attributes[1],
    }


def impression(row: Row, number: int, at: int | None = None) -> Record:
    return Record(
        "impression",
        row.time if at is None else at,
        f"r{number}",
        row.item,
        row.user,
        row.time,
        values_of(row),
    )


def click(row: Row, number: int, at: int | None = None) -> Record:
    return Record("click", row.time if at is None else at, f"r{number}", row.item, None, row.time)


def in_order(log: Sequence[Row]) -> list[Record]:
    """Each impression as it happens, its click at the same instant."""
    out = []
    for number, row in enumerate(log):
        out.append(impression(row, number))
        if row.clicked:
            out.append(click(row, number))
    return out


def disordered(log: Sequence[Row], most: int, draw: random.Random) -> list[Record]:
    """Every event comes up to ``most`` microseconds late, some of them twice; clicks may overtake their impressions."""
    arrivals = []
    for record in in_order(log):
        for _ in range(draw.choice((1, 1, 1, 2))):
            arrivals.append((record.time + (draw.randrange(most + 1) if most else 0), draw.random(), record))
    arrivals.sort(key=lambda a: a[:2])
    return [Record(r.kind, at, r.request_id, r.item_id, r.user_id, r.time, r.values) for at, _, r in arrivals]


def tick(at: int) -> Record:
    return Record("tick", at)


def run(book: Book, schema: LogSchema, records: Iterable[Record], batch: int = 7) -> None:
    waiting = list(records)
    for start in range(0, len(waiting), batch):
        with book.transaction():
            for record in waiting[start : start + batch]:
                play(book, schema, record)


def book_for(schema: LogSchema, lateness: int = 0, path: Path | str = ":memory:") -> Book:
    return Book(path, definition(schema), lateness)


def rows(book: Book, *, stamps: bool = True) -> dict[tuple[str, str], tuple[int, bytes]]:
    """Everything that a store gets."""
    return {(r.kind, r.key): (r.stamp if stamps else 0, r.content) for r in book.rows()}


def counters_at(book: Book, row: Row) -> np.ndarray:
    """The counters that a request for this row would get now."""
    found = book.definition
    user = None if row.user is None else book.content("user", row.user)
    item = None if row.item is None else book.content("item", row.item)
    return values(
        found,
        None if user is None else from_bytes(found, "user", [user]),
        empty_states(found, "item") if item is None else from_bytes(found, "item", [item]),
        row.time,
        np.array([slots_of(found.topics, values_of(row))]),
        np.array(slots_of(found.attributes, values_of(row))),
    )[0]
