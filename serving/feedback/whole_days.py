"""Daily statistics and user sequences, as in the feature tables, updated by events.

They need the complete history: only a log that begins with a training log has them (:attr:`serving.feedback.book.Book.whole`).

A sequence is updated by a click (or an impression) at once, in the order of the impressions' times, as in
:mod:`thinktwice.data.sequences`. A statistic is closed at midnight (:mod:`thinktwice.data.statistics`) with the outcomes known then, and
again when the last window of the day is closed; a click in between changes the second result.
"""

from __future__ import annotations

import json
import math
from itertools import groupby
from operator import itemgetter
from typing import Literal

from serving.feedback.book import Book, RowKind, Shown
from thinktwice.data.feature_tables import TableSpec, table_specs
from thinktwice.data.statistics import DAY_US, PRIOR_VIEWS
from thinktwice.schema import LogSchema

_ENTITIES: tuple[Literal["user", "item"], ...] = ("user", "item")


def pushed_tables(schema: LogSchema) -> tuple[TableSpec, ...]:
    """The feature tables that are updated by events."""
    return tuple(spec for spec in table_specs(schema) if spec.kind != "attributes")


def enter_sequences(book: Book, schema: LogSchema, one: Shown, values: dict[str, str | None], *, clicked: bool) -> None:
    """Add a shown or clicked item to the sequences of its user."""
    if not book.whole or one.user is None:
        return
    entering = [s for s in schema.computed_sequences if s.clicks_only == clicked]
    if not entering:
        return
    content = book.content("user_sequences", one.user)
    sequences: dict[str, list[list[int | str]]] = {} if content is None else json.loads(content)
    changed = False
    for sequence in entering:
        value = one.item if sequence.of == schema.key_of("item") else values.get(sequence.of)
        if not value:
            continue
        entries = sequences.setdefault(sequence.name, [])
        index = sum(1 for entry in entries if int(entry[0]) > one.time)  # newest first
        if index < sequence.length:
            entries.insert(index, [one.time, value])
            del entries[sequence.length :]
            changed = True
    if changed:
        book.put("user_sequences", one.user, json.dumps(sequences, ensure_ascii=False, sort_keys=True).encode())


def count_view(book: Book, schema: LogSchema, one: Shown) -> None:
    """Count an impression on its day."""
    _add(book, schema, one, 1, 0)


def count_click(book: Book, schema: LogSchema, one: Shown) -> None:
    """Count the click of an impression on the day of the impression."""
    _add(book, schema, one, 0, 1)


def _add(book: Book, schema: LogSchema, impression: Shown, views: int, clicks: int) -> None:
    if not book.whole or schema.statistics is None or not schema.statistics.windows_days:
        return
    day = impression.time // DAY_US
    keys = {"user": impression.user, "item": impression.item or None}
    counted = [("log", "")] + [(e, key) for e in schema.statistics.entities if (key := keys[e]) is not None]
    book.db.executemany(
        "INSERT INTO days VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, key, day) DO UPDATE "
        "SET views = views + excluded.views, clicks = clicks + excluded.clicks",
        [(kind, key, day, views, clicks) for kind, key in counted],
    )


def close_days(book: Book, schema: LogSchema) -> None:
    """Close the statistics of every day that has ended by the clock, and again when its last outcome is known."""
    if not book.whole or schema.statistics is None or not schema.statistics.windows_days:
        return
    today = book.at // DAY_US
    if book.day < 0:
        first = book.db.execute("SELECT min(day) FROM days WHERE kind = 'log'").fetchone()[0]
        if first is None:
            return
        book.day = int(first)
    final = int(book.fact("final_day", book.day))
    last_known = max(0, (book.watermark - book.definition.no_click_delay - 1) // DAY_US)
    if today == book.day and last_known <= final:
        return
    days = {*range(final + 1, last_known + 1), *range(book.day + 1, today + 1)}
    for day in _with_changes(book, schema, days):
        for entity in schema.statistics.entities:
            _close(book, schema, entity, day, today)
    book.day = today
    book.set_fact("final_day", max(final, last_known))


def _with_changes(book: Book, schema: LogSchema, days: set[int]) -> list[int]:
    """Those of the given days on which a counted day enters or leaves a window."""
    assert schema.statistics is not None
    if len(days) <= 2:
        return sorted(days)
    counted = {int(day) for (day,) in book.db.execute("SELECT DISTINCT day FROM days WHERE kind = 'log'")}
    back = [1, *(w + 1 for w in schema.statistics.windows_days if w)]
    return sorted(days & {day + b for day in counted for b in back})


def _close(book: Book, schema: LogSchema, entity: Literal["user", "item"], day: int, today: int) -> None:
    """Store the rows of the keys for which a day enters or leaves a window at the start of ``day``, with today's values."""
    assert schema.statistics is not None
    moved_days = [day - 1, *(day - w - 1 for w in schema.statistics.windows_days if w)]
    placeholders = ", ".join("?" * len(moved_days))
    keys = book.db.execute(
        f"SELECT DISTINCT key FROM days WHERE kind = ? AND day IN ({placeholders}) ORDER BY key",  # noqa: S608 - placeholders only
        (entity, *moved_days),
    ).fetchall()
    kind: RowKind = "user_statistics" if entity == "user" else "item_statistics"
    rates: dict[int, float | None] = {}
    for (key,) in keys:
        counted = book.db.execute(
            "SELECT day, views, clicks FROM days WHERE kind = ? AND key = ? AND day < ?", (entity, key, today)
        ).fetchall()
        if closed := _statistics(book, schema, entity, counted, today, rates):
            book.put(kind, key, closed[1])


def statistics_of(
    book: Book, schema: LogSchema, entity: Literal["user", "item"], today: int
) -> list[tuple[str, int, bytes]]:
    """The key, the day and the row of all statistics of an entity that are closed by the start of ``today``."""
    query = "SELECT key, day, views, clicks FROM days WHERE kind = ? AND day < ? ORDER BY key, day"
    rows = groupby(book.db.execute(query, (entity, today)), key=itemgetter(0))
    rates: dict[int, float | None] = {}
    closed = ((key, _statistics(book, schema, entity, [row[1:] for row in days], today, rates)) for key, days in rows)
    return [(key, *one) for key, one in closed if one is not None]


def _statistics(
    book: Book,
    schema: LogSchema,
    entity: Literal["user", "item"],
    counted: list[tuple[int, int, int]],
    today: int,
    rates: dict[int, float | None],
) -> tuple[int, bytes] | None:
    """The latest statistics of one key, and the day from which they are valid.

    Args:
        counted: day, views and clicks of the key before today.
        rates: click rates of the log by day, completed here.
    """
    assert schema.statistics is not None
    windows = schema.statistics.windows_days
    back = [1, *(w + 1 for w in windows if w)]
    valid = max((d + b for d, _, _ in counted for b in back if d + b <= today), default=None)
    if valid is None or (rate := _rate(book, valid, rates)) is None:
        return None
    names, values = schema.statistic_names(entity), {}
    for index, window in enumerate(windows):
        inside = [(v, c) for d, v, c in counted if d < valid and (not window or d >= valid - window)]
        views_in_window, clicks_in_window = sum(v for v, _ in inside), sum(c for _, c in inside)
        values[names[2 * index]] = math.log2(1 + views_in_window)
        values[names[2 * index + 1]] = (clicks_in_window + PRIOR_VIEWS * rate) / (views_in_window + PRIOR_VIEWS)
    return valid, json.dumps(values, sort_keys=True).encode()


def _rate(book: Book, day: int, cache: dict[int, float | None]) -> float | None:
    """The click rate of the log over all days before ``day``, None before the first day."""
    if day not in cache:
        views, clicks = book.db.execute(
            "SELECT sum(views), sum(clicks) FROM days WHERE kind = 'log' AND day < ?", (day,)
        ).fetchone()
        cache[day] = clicks / float(views) if views else None
    return cache[day]
