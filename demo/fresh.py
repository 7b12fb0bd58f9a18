"""The demo's look at fresh evidence: the last day of the log as feedback, then some new clicks of one user, and how the list moved."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from demo.answer import ranked
from demo.question import NUM_SHOWN, Question
from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.console.processes import python_command, running, wait
from thinktwice.data.instant.definition import definition_of
from thinktwice.errors import DataError
from thinktwice.parquet import read_schema, write_table
from thinktwice.printable import printable
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID, SCHEMA_FILE, LogSchema, load_schema
from thinktwice.validate.side_tables import read_clean

NUM_CLICKS = 5
CLEAN = "clean.parquet"
REASONS = {"new_user": "new user", "thin_support": "thin support", "uncertain_score": "uncertain score", "": ""}


@dataclass(frozen=True)
class FreshClicks:
    """New clicks of the user of a question.

    Attributes:
        topic: what the clicked items share: field and value, empty if the log has no topic.
        items: clicked items; none is among ``candidates``.
        candidates: of the question that is asked before and after.
    """

    topic: tuple[str, str] | None
    items: tuple[str, ...]
    candidates: tuple[str, ...]


class EventFeed:
    """Feeds events of the log to the online store of the running server, by ``thinktwice feedback import``.

    Args:
        clean: folder of the clean log.
        folder: where the event log and the files of events are written; emptied.
        store: options that name the feature store of the served model.

    Attributes:
        now: time up to which the online store is complete.
    """

    def __init__(self, clean: Path, folder: Path, *store: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder, self._store = folder, store
        self.schema: LogSchema = load_schema(clean / SCHEMA_FILE)
        definition = definition_of(self.schema)
        if definition is None:
            raise DataError(
                f"the log {self.schema.name} has no statistics.instant, so there is no feedback to show: choose another data set"
            )
        self.definition = definition
        self._fields = list(
            dict.fromkeys(
                [c.field for c in (*definition.topics, *definition.attributes)]
                + [s.of for s in self.schema.computed_sequences if s.of != self.schema.key_of("item")]
            )
        )
        self.window = timedelta(microseconds=max(definition.click_delay, definition.no_click_delay))
        names = read_schema(clean / CLEAN).names
        self._rows = read_clean(clean, self.schema, [*names, *self._fields]).sort(EVENT_TIME, ROW_ID)
        end: datetime = self._rows[EVENT_TIME][-1]
        self._last_day = self._rows.filter(pl.col(EVENT_TIME) >= end - timedelta(days=1))
        self.now = end

    def begin(self) -> int:
        """Import the log up to its last day. Returns the number of impressions."""
        before = self._rows.head(self._rows.height - self._last_day.height)
        folder = self._folder / "before"
        folder.mkdir()
        write_table(before.to_arrow(), folder / CLEAN)
        (folder / SCHEMA_FILE).write_text(self.schema.to_yaml(), encoding="utf-8")
        self._import(folder)
        return before.height

    def last_day(self) -> int:
        """Import the last day, and wait until its windows are closed. Returns the number of impressions."""
        self._feed("last-day.jsonl", self._events(self._last_day.iter_rows(named=True)))
        return self._last_day.height

    def clicks(self, question: Question, clicks: FreshClicks) -> None:
        """Show the items to the user of the question, let them be clicked, and wait until these clicks are counted."""
        user, item = self.schema.key_of("user"), self.schema.key_of("item")
        assert user is not None and item is not None
        values = self._rows.group_by(item).agg(pl.col(self._fields).last())
        of_item = {row[item]: row for row in values.iter_rows(named=True)}
        of_user = self._rows.filter(pl.col(user) == question.user).row(-1, named=True)
        rows = []
        for number, clicked in enumerate(clicks.items):
            row = {**of_user, **of_item[clicked], ROW_ID: f"demo-{number}", user: question.user, LABEL: 1}
            rows.append({**row, EVENT_TIME: self.now + timedelta(seconds=10 * number)})
        self._feed("new-clicks.jsonl", self._events(rows))

    def _events(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        user, item = self.schema.key_of("user"), self.schema.key_of("item")
        assert user is not None and item is not None  # choose_question has refused other logs
        for row in rows:
            self.now = max(self.now, row[EVENT_TIME])
            ids = {"request_id": row[ROW_ID], "item_id": row[item], "at": row[EVENT_TIME].timestamp()}
            values = {name: row[name] for name in self._fields}
            yield {"kind": "impression", **ids, "user_id": row[user], "values": values}
            if row[LABEL] == 1:
                yield {"kind": "click", **ids}

    def _feed(self, name: str, events: Iterator[dict[str, Any]]) -> None:
        file = self._folder / name
        file.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        self.now += self.window + timedelta(seconds=1)
        self._import(file, "--until", self.now.isoformat())

    def _import(self, source: Path, *options: str) -> None:
        command = python_command(
            *("thinktwice", "feedback", "import", str(source), "--log", str(self._folder / "events")),
            *self._store,
            *options,
        )
        log = self._folder / "import.log"
        with log.open("ab") as output, running(command, environment=os.environ, output=output) as process:
            code = wait(process)
        if code != 0:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise DataError(last[-1].removeprefix("thinktwice: ") if last else f"the feedback was not imported: {log}")


def choose_clicks(feed: EventFeed, clean: Path, question: Question, prediction: dict[str, Any]) -> FreshClicks:
    """Popular items of a topic that the model ranks low for the user: clicks on them should move the list.

    Args:
        prediction: the answer to the question.
    """
    schema, definition = feed.schema, feed.definition
    item = schema.key_of("item")
    order = [entry["item_id"] for entry in ranked(prediction)]
    if not definition.topics or item is None:
        return FreshClicks(None, tuple(order[-NUM_CLICKS:]), tuple(order[:-NUM_CLICKS]))
    field = definition.topics[0].field
    rows = read_clean(clean, feed.schema, [item, field]).drop_nulls()
    topics: dict[str, str] = dict(rows.group_by(item).agg(pl.col(field).last()).iter_rows())
    ranks: dict[str, list[int]] = {}
    for rank, candidate in enumerate(order):
        if candidate in topics:
            ranks.setdefault(topics[candidate], []).append(rank)
    enough = {topic: found for topic, found in ranks.items() if len(found) >= NUM_CLICKS + 3} or ranks
    if not enough:
        return FreshClicks(None, tuple(order[-NUM_CLICKS:]), tuple(order[:-NUM_CLICKS]))
    topic = max(enough, key=lambda name: (sum(enough[name]) / len(enough[name]), name))
    clicked = tuple(order[rank] for rank in enough[topic][-NUM_CLICKS:])
    return FreshClicks(
        (field, str(topic)), clicked, tuple(c for c in question.request["candidates"] if c not in clicked)
    )


def print_moves(
    console: Console, question: Question, clicks: FreshClicks, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Print the list after the clicks, where each item was before, and what the second look changed."""
    was = {entry["item_id"]: rank for rank, entry in enumerate(ranked(before), 1)}
    topic = f" with {clicks.topic[0]} {printable(clicks.topic[1])}" if clicks.topic else ""
    say(console, f"\nThen user {printable(question.user)} clicks {len(clicks.items)} items{topic}:")
    for clicked in clicks.items:
        say(console, f"· {printable(question.titles.get(clicked, clicked))}", indent=2)
    say(console, "\nThe same question, when these clicks are counted:")
    columns = (
        Column("rank"),
        Column("was"),
        Column("item", right=False),
        Column("click probability"),
        Column("base pass alone"),
        Column("second look", right=False),
    )
    print_table(console, columns, [Record(_cells(question, was, rank, entry)) for rank, entry in _top(after)])
    say(console, "\n" + summary(before, after))


def summary(before: dict[str, Any], after: dict[str, Any]) -> str:
    """How many items got a second look and why, how many were moved by counters, and how many are new among the first."""
    entries = ranked(after)
    looked = Counter(entry["reason"] for entry in entries if entry["reason"])
    reasons = ", ".join(f"{number} for {REASONS[reason]}" for reason, number in looked.most_common())
    first = {entry["item_id"] for _, entry in _top(before)}
    entered = sum(entry["item_id"] not in first for _, entry in _top(after))
    moved = sum(entry["corrected"] for entry in entries)
    second = f"{sum(looked.values())} of {len(entries)} items got a second look ({reasons}); " if looked else ""
    return (
        f"{second}{'c' if second else 'C'}ounters moved the probability of {moved} of {len(entries)} items. "
        f"{entered} of the first {2 * NUM_SHOWN} items were not among them before."
    )


def _top(prediction: dict[str, Any]) -> Sequence[tuple[int, dict[str, Any]]]:
    return list(enumerate(ranked(prediction)[: 2 * NUM_SHOWN], 1))


def _cells(question: Question, was: dict[str, int], rank: int, entry: dict[str, Any]) -> tuple[str, ...]:
    item = entry["item_id"]
    moved = was[item] - rank
    arrow = f" ↑{moved}" if moved > 0 else f" ↓{-moved}" if moved < 0 else ""
    return (
        str(rank),
        f"{was[item]}{arrow}",
        question.titles.get(item, item),
        f"{entry['probability']:.3f}",
        f"{entry['base_probability']:.3f}",
        REASONS[entry["reason"]],
    )
