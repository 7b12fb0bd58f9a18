"""Join of impressions and clicks into outcomes: which impression was clicked, when each outcome is known, when its window closes.

Everything is derived from the records alone, in order. The clock is ``at`` of the record; the *watermark* is the clock minus the
configured lateness. An outcome is added to the counters when the watermark has passed the instant at which it is known: the time of
the impression plus the delay of its label (:meth:`thinktwice.data.instant.definition.Definition.delay`), in the order of these
instants. Training assumes the same, so a log whose events arrive within the delay and the lateness gives bit-identical counters.

A click that arrives after the delay of clicks, while the window is open, violates this assumption: it is counted as ``late`` and added
at once. The window of an impression closes after the delay of non-clicks; later events are counted and ignored.
"""

from __future__ import annotations

import json

from serving.feedback.book import LOG_KEY, Book, Shown
from serving.feedback.records import Record
from serving.feedback.whole_days import close_days, count_click, count_view, enter_sequences
from thinktwice.data.instant.keys import slots_of
from thinktwice.data.instant.state import Outcome, apply
from thinktwice.schema import LogSchema

AHEAD = 5_000_000  # microseconds by which a sender's clock may be ahead of ours, or a click may precede its impression

#: Possible results for an event; every event is counted under exactly one of them.
IMPRESSION_FATES = ("impressions", "impressions_twice", "impressions_too_late", "impressions_in_future")
CLICK_FATES = (
    *("clicks", "clicks_twice", "clicks_too_late", "clicks_in_future"),
    *("clicks_before_impression", "clicks_waiting"),
)
#: Results for outcomes: known in time, known after the delay, closed without a click.
OUTCOMES = ("outcomes_clicked", "outcomes_clicked_late", "outcomes_not_clicked")
#: Clicks whose impression never arrived; they were counted as waiting.
UNMATCHED = "clicks_unmatched"


def play(book: Book, schema: LogSchema, record: Record) -> None:
    """Apply one record, within a transaction of the book."""
    book.stamp = max(book.stamp + 1, record.at)
    book.at = max(book.at, record.at)
    if record.kind == "start":
        book.whole = True
        return
    _release(book, schema)
    if record.kind == "impression":
        book.counts[_impression(book, schema, record)] += 1
    elif record.kind == "click":
        book.counts[_click(book, schema, record)] += 1
    close_days(book, schema)


def _release(book: Book, schema: LogSchema) -> None:
    """Process all entries that are due before the watermark."""
    while (entry := book.next_due(book.watermark)) is not None:
        _, kind, request, item = entry
        if kind == "unmatched":
            if book.waiting(request, item) is not None:
                book.counts[UNMATCHED] += 1
            continue
        impression = book.shown(request, item)
        assert impression is not None
        if kind == "click":
            _count(book, impression, clicked=True)
            book.counts["outcomes_clicked"] += 1
            _done(book, impression, released=True, closed=impression.closed)
        elif impression.clicked:
            _done(book, impression, released=impression.released, closed=True)
        else:
            _count(book, impression, clicked=False)
            book.counts["outcomes_not_clicked"] += 1
            book.forget(impression)


def _done(book: Book, impression: Shown, *, released: bool, closed: bool) -> None:
    """Delete a clicked impression when its click has been counted and its window is closed."""
    if released and closed:
        book.forget(impression)
    else:
        book.mark(impression, "released" if released else "closed")


def _impression(book: Book, schema: LogSchema, record: Record) -> str:
    definition, request, item = book.definition, record.request_id, record.item_id or ""
    if record.time > book.at + AHEAD:
        return "impressions_in_future"
    if record.time + definition.no_click_delay < book.watermark:
        return "impressions_too_late"
    if book.shown(request, item) is not None:
        return "impressions_twice"
    values = record.values or {}
    book.add_shown(request, item, record.time, record.user_id, values)
    book.add_due(record.time + definition.no_click_delay, "close", request, item)
    impression = Shown(request, item, record.time, record.user_id, json.dumps(values), False, False, False)
    count_view(book, schema, impression)
    enter_sequences(book, schema, impression, values, clicked=False)
    if (clicked_at := book.waiting(request, item)) is not None:
        book.counts["clicks_waiting"] -= 1
        book.counts[_matched(book, schema, impression, clicked_at)] += 1
    return "impressions"


def _click(book: Book, schema: LogSchema, record: Record) -> str:
    request, item = record.request_id, record.item_id or ""
    if record.time > book.at + AHEAD:
        return "clicks_in_future"
    impression = book.shown(request, item)
    if impression is not None:
        return _matched(book, schema, impression, record.time)
    until = record.time + AHEAD + book.definition.no_click_delay
    if until < book.watermark:
        return "clicks_too_late"  # or its impression never arrived: the window is closed in either case
    if not book.wait(request, item, record.time):
        return "clicks_twice"
    book.add_due(until, "unmatched", request, item)
    return "clicks_waiting"


def _matched(book: Book, schema: LogSchema, impression: Shown, clicked_at: int) -> str:
    """Process a click whose impression is open."""
    if impression.clicked:
        return "clicks_twice"
    if impression.closed or clicked_at > impression.time + book.definition.no_click_delay:
        return "clicks_too_late"
    if clicked_at < impression.time - AHEAD:
        return "clicks_before_impression"
    book.mark(impression, "clicked")
    count_click(book, schema, impression)
    enter_sequences(book, schema, impression, json.loads(impression.content), clicked=True)
    known_at = impression.time + book.definition.click_delay
    if known_at < book.watermark:
        _count(book, impression, clicked=True)
        book.mark(impression, "released")
        book.counts["outcomes_clicked_late"] += 1
    else:
        book.add_due(known_at, "click", impression.request, impression.item)
    return "clicks"


def _count(book: Book, impression: Shown, *, clicked: bool) -> None:
    """Add an outcome to the states of its user, its item and the log."""
    definition, values = book.definition, json.loads(impression.content)
    user = impression.user if definition.user is not None else None
    item = (impression.item or None) if definition.item is not None else None
    outcome = Outcome(
        user,
        item,
        impression.time,
        clicked,
        slots_of(definition.topics, values),
        slots_of(definition.attributes, values),
    )
    apply(
        definition,
        outcome,
        book.state("log", LOG_KEY),
        None if user is None else book.state("user", user),
        None if item is None else book.state("item", item),
        None if user is None or item is None else book.state("recent", user),
    )
