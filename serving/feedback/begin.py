"""The state of a log that begins with a training log, computed by whole columns instead of record by record.

A training log has each impression, and its click, at the time of the impression, in the order of time. So no event is late,
and what :func:`serving.feedback.join.play` makes of the records follows from columns: the result is the same to the bit, including
the stamps of the rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from serving.feedback.book import LOG_KEY, Book, RowKind
from serving.feedback.event_log import Position
from serving.feedback.training_rows import ITEM, REQUEST, USER, VALUE
from serving.feedback.whole_days import statistics_of
from thinktwice.data.instant.log_counters import LogRows, log_rows
from thinktwice.data.instant.log_states import log_state, log_states, recent_states
from thinktwice.data.statistics import DAY_US
from thinktwice.schema import EVENT_TIME, LABEL, LogSchema

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Records:
    """The records of the log: ``at`` [N] ascending and ``stamp`` [N] after each, without the first one, which only starts the log.

    ``impression`` and ``click`` [R] are the positions of the records of each row; without a click that of its impression.
    """

    at: Ints
    stamp: Ints
    impression: Ints
    click: Ints

    def stamp_after(self, instant: Ints) -> Ints:
        """Stamps of the first records later than the instants; there must be one."""
        return self.stamp[np.searchsorted(self.at, instant, side="right")]


def _records(time: Ints, clicked: npt.NDArray[np.bool_]) -> _Records:
    at = np.repeat(time, 1 + clicked)
    number = np.arange(1, len(at) + 1)
    stamp = number + np.maximum(1, np.maximum.accumulate(at - number))
    impression = np.arange(len(time)) + np.cumsum(clicked) - clicked
    return _Records(at, stamp, impression, impression + clicked)


def begin(book: Book, schema: LogSchema, rows: pl.DataFrame, position: Position) -> None:
    """Fill an empty book with the state after a training log.

    Args:
        rows: the table of :func:`~serving.feedback.training_rows.training_rows`; no impression may appear twice.
        position: end of the log.
    """
    time, clicked = rows[EVENT_TIME].to_numpy(), rows[LABEL].to_numpy() == 1
    records = _records(time, clicked)
    with book.transaction():
        book.whole, book.position = True, position
        book.at, book.stamp = int(records.at[-1]), int(records.stamp[-1])
        _outcomes(book, rows, time, clicked)
        _states(book, _log_rows(book, schema, rows), records)
        _sequences(book, schema, rows, records)
        _days(book, schema, rows, records)


def _outcomes(book: Book, rows: pl.DataFrame, time: Ints, clicked: npt.NDArray[np.bool_]) -> None:
    """Counts of events and outcomes, and the impressions whose window is open."""
    definition, before = book.definition, book.watermark
    closed = time + definition.no_click_delay < before
    released = clicked & (time + definition.click_delay < before)
    counts = {
        "impressions": len(time),
        "clicks": clicked.sum(),
        "outcomes_clicked": released.sum(),
        "outcomes_not_clicked": (closed & ~clicked).sum(),
    }
    book.counts.update({name: int(number) for name, number in counts.items() if number})
    still = np.flatnonzero(~(closed & (released | ~clicked)))
    fields = [name.removeprefix(VALUE) for name in rows.columns if name.startswith(VALUE)]
    for row, one in zip(still, rows[still].iter_rows(named=True), strict=True):
        request, item, shown_at = one[REQUEST], one[ITEM] or "", one[EVENT_TIME]
        book.add_shown(request, item, shown_at, one[USER], {name: one[VALUE + name] for name in fields})
        shown = book.shown(request, item)
        assert shown is not None
        if clicked[row]:
            book.mark(shown, "clicked")
        if released[row]:
            book.mark(shown, "released")
        if closed[row]:
            book.mark(shown, "closed")
        else:
            book.add_due(shown_at + definition.no_click_delay, "close", request, item)
        if clicked[row] and not released[row]:
            book.add_due(shown_at + definition.click_delay, "click", request, item)


def _log_rows(book: Book, schema: LogSchema, rows: pl.DataFrame) -> LogRows:
    ids = {schema.key_of("user"): USER, schema.key_of("item"): ITEM}

    def column(name: str) -> pl.Series:
        if name == EVENT_TIME:
            return rows[name].cast(pl.Datetime("us", "UTC"))
        return rows[name if name == LABEL else ids.get(name) or VALUE + name]

    return log_rows(column, book.definition)


def _states(book: Book, rows: LogRows, records: _Records) -> None:
    definition, before = book.definition, book.watermark
    state = log_state(rows, definition, before)
    if state["views"][0]:
        _put(book, "log", [LOG_KEY], [state.tobytes()], records.stamp_after(state["known_at"] + book.lateness))
    if definition.user is not None:
        for ids, states in log_states(rows, definition, "user", before):
            stamps = records.stamp_after(states["known_at"] + book.lateness)
            _put(book, "user", ids.to_list(), [one.tobytes() for one in states], stamps)
    if definition.item is not None:
        for ids, states in log_states(rows, definition, "item", before):
            stamps = records.stamp_after(states["known_at"] + book.lateness)
            _put(book, "item", ids.to_list(), [one.tobytes() for one in states], stamps)
    if definition.user is not None and definition.item is not None:
        for ids, states in recent_states(rows, definition, before):
            stamps = records.stamp_after(states["at"][:, -1].astype(np.int64) + book.lateness)
            _put(book, "recent", ids.to_list(), [one.tobytes() for one in states], stamps)


def _sequences(book: Book, schema: LogSchema, rows: pl.DataFrame, records: _Records) -> None:
    """The latest values of every user's sequences, newest first."""
    found: dict[str, dict[str, list[list[int | str]]]] = {}
    stamps: dict[str, int] = {}
    known = rows.with_row_index("row").filter(pl.col(USER).is_not_null())
    for sequence in schema.computed_sequences:
        source = ITEM if sequence.of == schema.key_of("item") else VALUE + sequence.of
        entering = known.filter(
            (pl.col(source).fill_null("") != "") & ((pl.col(LABEL) == 1) | (not sequence.clicks_only))
        )
        latest = entering.group_by(USER, maintain_order=True).agg(
            pl.col(name).tail(sequence.length).reverse() for name in (EVENT_TIME, source, "row")
        )
        at = records.click if sequence.clicks_only else records.impression
        for user, times, values, numbers in latest.select(USER, EVENT_TIME, source, "row").iter_rows():
            found.setdefault(user, {})[sequence.name] = [list(entry) for entry in zip(times, values, strict=True)]
            stamps[user] = max(stamps.get(user, 0), int(records.stamp[at[numbers[0]]]))
    contents = [json.dumps(found[user], ensure_ascii=False, sort_keys=True).encode() for user in found]
    _put(book, "user_sequences", list(found), contents, np.array([stamps[user] for user in found], np.int64))


def _days(book: Book, schema: LogSchema, rows: pl.DataFrame, records: _Records) -> None:
    """Views and clicks of every day, and the statistics of the days that have ended."""
    statistics = schema.statistics
    if statistics is None or not statistics.windows_days:
        return
    table = rows.with_columns((pl.col(EVENT_TIME) // DAY_US).alias("day"), pl.col(ITEM).replace("", None))
    keys = {"user": pl.col(USER), "item": pl.col(ITEM)}
    for counted_kind, key in [("log", pl.lit("")), *((entity, keys[entity]) for entity in statistics.entities)]:
        counted = table.group_by(key.alias("key"), "day").agg(
            pl.len().alias("views"), pl.col(LABEL).sum().cast(pl.Int64)
        )
        book.db.executemany(
            "INSERT INTO days VALUES (?, ?, ?, ?, ?)",
            ((counted_kind, *row) for row in counted.drop_nulls("key").iter_rows()),
        )
    first, today = int(records.at[0] // DAY_US), int(records.at[-1] // DAY_US)
    final = max(first, _last_known(book, records.at[-1:])[0])
    book.day = today
    if (today, final) != (first, first):
        book.set_fact("final_day", int(final))
    day_of, known = records.at // DAY_US, np.maximum(first, _last_known(book, records.at))
    for entity in statistics.entities:
        kind: RowKind = "user_statistics" if entity == "user" else "item_statistics"
        found = statistics_of(book, schema, entity, today)
        valid = np.array([day for _, day, _ in found], np.int64)
        closed, settled = np.searchsorted(day_of, valid), np.searchsorted(known, valid)
        last = np.where(settled < len(known), settled, closed)
        _put(book, kind, [key for key, _, _ in found], [content for _, _, content in found], records.stamp[last])


def _last_known(book: Book, at: Ints) -> Ints:
    """The last day at whose start all outcomes of earlier days are known, by the clock ``at``."""
    known: Ints = np.maximum(0, (at - book.lateness - book.definition.no_click_delay - 1) // DAY_US)
    return known


def _put(book: Book, kind: RowKind, keys: list[str], contents: list[bytes], stamps: Ints) -> None:
    book.db.executemany(
        "INSERT INTO states VALUES (?, ?, ?, ?, 1)",
        ((kind, key, int(stamp), content) for key, stamp, content in zip(keys, stamps, contents, strict=True)),
    )
