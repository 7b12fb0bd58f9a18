"""From records to outcomes: which impression was clicked, when each outcome is known, and when its window is closed.

All of it follows from the records alone, one after the other. The clock is ``at`` of the record; the *watermark* is that less the
stated lateness. An outcome enters the counters when the watermark has passed the instant at which it is known: the impression's
time plus the delay of its label (:meth:`thinktwice.data.instant.definition.Definition.delay`), in the order of these instants. That is
what training assumed, so a log whose events come within the delay and the lateness gives the counters of training to the bit.

A click that comes later than the delay of clicks, while the window is open, is a broken assumption: it is counted as ``late`` and enters
at once. The window of an impression closes with the delay of non-clicks; what comes after that is counted and left out.
"""

from __future__ import annotations

import json

from serving.feedback.book import LOG_KEY, Book, Shown
from serving.feedback.records import Record
from serving.feedback.whole_days import close_days, count_click, count_view, enter_sequences
from thinktwice.data.instant.keys import slots_of
from thinktwice.data.instant.state import Outcome, apply
from thinktwice.schema import LogSchema

AHEAD = 5_000_000  # microseconds by which the clock of a sender may be ahead of ours, or a click before its impression

#: What may become of an event; every event is counted under exactly one of them.
IMPRESSION_FATES = ("impressions", "impressions_twice", "impressions_too_late", "impressions_in_future")
CLICK_FATES = (
    *("clicks", "clicks_twice", "clicks_too_late", "clicks_in_future"),
    *("clicks_before_impression", "clicks_waiting"),
)
#: What became of outcomes: known in time, known later than the delay says, closed without a click.
OUTCOMES = ("outcomes_clicked", "outcomes_clicked_late", "outcomes_not_clicked")
#: Clicks that waited and whose impression never came; they were counted as waiting.
UNMATCHED = "clicks_unmatched"


def play(book: Book, schema: LogSchema, record: Record) -> None:
    """Let one record happen, within a transaction of the book."""
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
    """Everything that is known before the watermark."""
    while (due := book.next_due(book.watermark)) is not None:
        _, kind, request, item = due
        if kind == "unmatched":
            if book.waiting(request, item) is not None:
                book.counts[UNMATCHED] += 1
            continue
        one = book.shown(request, item)
        assert one is not None
        if kind == "click":
            _count(book, one, clicked=True)
            book.counts["outcomes_clicked"] += 1
            _done(book, one, released=True, closed=one.closed)
        elif one.clicked:
            _done(book, one, released=one.released, closed=True)
        else:
            _count(book, one, clicked=False)
            book.counts["outcomes_not_clicked"] += 1
            book.forget(one)


def _done(book: Book, one: Shown, *, released: bool, closed: bool) -> None:
    """A clicked impression is forgotten when its click has entered and its window is closed."""
    if released and closed:
        book.forget(one)
    else:
        book.mark(one, "released" if released else "closed")


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
    one = Shown(request, item, record.time, record.user_id, json.dumps(values), False, False, False)
    count_view(book, schema, one)
    enter_sequences(book, schema, one, values, clicked=False)
    if (clicked_at := book.waiting(request, item)) is not None:
        book.counts["clicks_waiting"] -= 1
        book.counts[_matched(book, schema, one, clicked_at)] += 1
    return "impressions"


def _click(book: Book, schema: LogSchema, record: Record) -> str:
    request, item = record.request_id, record.item_id or ""
    if record.time > book.at + AHEAD:
        return "clicks_in_future"
    one = book.shown(request, item)
    if one is not None:
        return _matched(book, schema, one, record.time)
    until = record.time + AHEAD + book.definition.no_click_delay
    if until < book.watermark:
        return "clicks_too_late"  # or its impression never came: its window is closed in either case
    if not book.wait(request, item, record.time):
        return "clicks_twice"
    book.add_due(until, "unmatched", request, item)
    return "clicks_waiting"


def _matched(book: Book, schema: LogSchema, one: Shown, clicked_at: int) -> str:
    """A click whose impression is open."""
    if one.clicked:
        return "clicks_twice"
    if one.closed or clicked_at > one.time + book.definition.no_click_delay:
        return "clicks_too_late"
    if clicked_at < one.time - AHEAD:
        return "clicks_before_impression"
    book.mark(one, "clicked")
    count_click(book, schema, one)
    enter_sequences(book, schema, one, json.loads(one.content), clicked=True)
    known = one.time + book.definition.click_delay
    if known < book.watermark:
        _count(book, one, clicked=True)
        book.mark(one, "released")
        book.counts["outcomes_clicked_late"] += 1
    else:
        book.add_due(known, "click", one.request, one.item)
    return "clicks"


def _count(book: Book, one: Shown, *, clicked: bool) -> None:
    """Let an outcome enter the states of its user, its item and the log."""
    definition, values = book.definition, json.loads(one.content)
    user = one.user if definition.user is not None else None
    item = (one.item or None) if definition.item is not None else None
    outcome = Outcome(
        user, item, one.time, clicked, slots_of(definition.topics, values), slots_of(definition.attributes, values)
    )
    apply(
        definition,
        outcome,
        book.state("log", LOG_KEY),
        None if user is None else book.state("user", user),
        None if item is None else book.state("item", item),
        None if user is None or item is None else book.state("recent", user),
    )
