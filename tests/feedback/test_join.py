"""From events to counters: the same as training, whatever the disorder within the watermark, and nothing lost without a count."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.feedback.book import Book
from serving.feedback.join import CLICK_FATES, IMPRESSION_FATES, OUTCOMES
from serving.feedback.records import Record
from tests.data.instant.logs import assert_same_bits, logs, read
from tests.data.instant.oracle import Row
from tests.feedback.streams import (
    SECOND,
    book_for,
    click,
    counters_at,
    definition,
    disordered,
    impression,
    in_order,
    rows,
    run,
    schema_of,
    tick,
)
from thinktwice.data.instant.definition import RESIDUAL_BITS
from thinktwice.data.instant.log_counters import log_counters

DELAYS = st.sampled_from(((0, 0), (0, 600), (5, 600), (60, 60), (600, 5), (3600, 86_400)))
A_ROW = Row(1_700_000_000 * SECOND, True, "u", "i", ("a", "b"), ("x", "f"))


def moved(log: list[Row]) -> list[Row]:
    """The rows from 1970 on, where the events of a service lie."""
    first = min(0, log[0].time)
    return [Row(r.time - first, r.clicked, r.user, r.item, r.topics, r.attributes) for r in log]


def training(log: list[Row], found, scratch) -> np.ndarray:
    return np.concatenate(list(log_counters(read(log, found), found, scratch, 1000)))


def reference(schema, records: list[Record], lateness: int = 0) -> Book:
    book = book_for(schema, lateness)
    run(book, schema, records)
    return book


@settings(max_examples=60)
@given(log=logs(most=25), delays=DELAYS)
def test_a_log_in_order_gives_the_counters_of_training(
    log: list[Row], delays: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = moved(log)
    schema = schema_of({"feedback_delay": {"click": delays[0], "no_click": delays[1]}})
    found = definition(schema)
    book = book_for(schema)
    expected = training(log, found, tmp_path_factory.mktemp("scratch"))
    for number, row in enumerate(log):
        run(book, schema, [tick(row.time)])
        assert_same_bits(counters_at(book, row)[None], expected[number][None], found.names)
        run(book, schema, in_order([row]) if number == 0 else [impression(row, number)])
        if row.clicked and number:
            run(book, schema, [click(row, number)])
    assert book.counts["outcomes_clicked_late"] == 0


@settings(max_examples=60)
@given(log=logs(most=25), delays=DELAYS, seed=st.integers(0, 999), lateness=st.sampled_from((0, 1, 30, 7200)))
def test_disorder_within_the_watermark_changes_nothing(
    log: list[Row], delays: tuple[int, int], seed: int, lateness: int
) -> None:
    """Counts and residuals alike: outcomes wait for the watermark and enter in the order in which they are known."""
    log, late = moved(log), lateness * SECOND
    schema = schema_of({"feedback_delay": {"click": delays[0], "no_click": delays[1]}})
    end = tick(max(r.time for r in log) + 2 * 86_400 * SECOND + late)
    expected = reference(schema, [*in_order(log), end])
    got = reference(schema, [*disordered(log, late, random.Random(seed)), end], late)
    assert rows(got, stamps=False) == rows(expected, stamps=False)
    assert got.counts["outcomes_clicked_late"] == 0


@settings(max_examples=60)
@given(log=logs(most=25), seed=st.integers(0, 999), no_click=st.sampled_from((60, 600, 86_400)))
def test_clicks_later_than_training_assumed_keep_every_count(log: list[Row], seed: int, no_click: int) -> None:
    """A click that comes after its delay, within its window: all counts are equal in the end, and each outcome that disorder could
    touch moves a sum of residuals by one at most."""
    log, draw = moved(log), random.Random(seed)
    schema = schema_of({"feedback_delay": {"click": 1, "no_click": no_click}})
    late = []
    for number, row in enumerate(log):
        late.append(impression(row, number))
        if row.clicked:
            at = row.time + draw.randrange(no_click * SECOND)
            late.append(Record("click", at, f"r{number}", row.item, None, row.time))
    late.sort(key=lambda r: r.at)
    end = tick(max(r.time for r in log) + 2 * 86_400 * SECOND)
    expected, got = reference(schema, [*in_order(log), end]), reference(schema, [*late, end])
    clicked = sum(r.clicked for r in log)
    assert got.counts["outcomes_clicked"] + got.counts["outcomes_clicked_late"] == clicked
    assert got.counts["outcomes_not_clicked"] == len(log) - clicked
    may_differ = {"residual", "last_mark", "bucket_sums", "crossed_sums", "log_views", "log_clicks"}
    may_differ |= {"before_log_views", "before_log_clicks"}
    for (kind, key), (_, content) in rows(expected, stamps=False).items():
        one = np.frombuffer(content, expected._types[kind])
        other = np.frombuffer(rows(got)[(kind, key)][1], expected._types[kind])
        for name in one.dtype.names or ():
            if not (name in may_differ and kind in ("user", "item")) or (kind, name) == ("item", "bucket_sums"):
                np.testing.assert_array_equal(one[name], other[name], err_msg=f"{kind} {key} {name}")
        if kind == "user":
            outcomes = sum(r.user == key for r in log)
            assert abs(int(one["residual"][0]) - int(other["residual"][0])) <= outcomes << RESIDUAL_BITS


@settings(max_examples=40)
@given(log=logs(most=15), seed=st.integers(0, 999), batches=st.lists(st.integers(1, 9), min_size=2, max_size=2))
def test_what_a_store_gets_depends_on_the_records_alone(log: list[Row], seed: int, batches: list[int]) -> None:
    log = moved(log)
    schema = schema_of({"feedback_delay": {"click": 5, "no_click": 60}}, [{"name": "last", "of": "item_id"}], [1, 7, 0])
    records = [Record("start", 0), *disordered(log, 30 * SECOND, random.Random(seed))]
    books = [book_for(schema) for _ in batches]
    for book, batch in zip(books, batches, strict=True):
        run(book, schema, records, batch)
    assert rows(books[0]) == rows(books[1]) and books[0].counts == books[1].counts


events = st.lists(
    st.tuples(
        st.sampled_from(("impression", "click", "tick")),
        st.integers(0, 2),
        st.sampled_from(("i", "j")),
        st.sampled_from((0, 1, 4, 59, 60, 61, 119, 3600, 90_000)),
        st.sampled_from((0, 0, 1, 58, 61, 4000)),
    ),
    max_size=30,
)


@settings(max_examples=200)
@given(events=events, lateness=st.sampled_from((0, 2)))
def test_every_event_has_one_fate_and_every_impression_one_outcome(
    events: list[tuple[str, int, str, int, int]], lateness: int
) -> None:
    """Any stream at all: clicks without impressions, doubles, disorder, clocks that jump."""
    schema = schema_of({"feedback_delay": {"click": 5, "no_click": 60}}, [{"name": "last", "of": "item_id"}])
    at, records = 1_000_000 * SECOND, [Record("start", 0)]
    for kind, request, item, off, step in events:
        at += step * SECOND
        time = at + (30_000 - off) * SECOND if off == 90_000 else at - off * SECOND
        if kind == "tick":
            records.append(tick(at))
        elif kind == "click":
            records.append(Record("click", at, f"r{request}", item, None, time))
        else:
            records.append(Record("impression", at, f"r{request}", item, "u", time, {}))
    book = reference(schema, records, lateness * SECOND)
    counts, kinds = book.counts, [r.kind for r in records]
    assert sum(counts[f] for f in IMPRESSION_FATES) == kinds.count("impression")
    assert sum(counts[f] for f in CLICK_FATES) == kinds.count("click")
    run(book, schema, [tick(at + 10 * 86_400 * SECOND)])
    assert sum(counts[o] for o in OUTCOMES) == counts["impressions"]
    assert counts["outcomes_clicked"] + counts["outcomes_clicked_late"] == counts["clicks"]
    assert counts["clicks_unmatched"] == counts["clicks_waiting"]
    for table in ("shown", "due", "waiting"):
        assert book.db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_an_event_from_the_future_is_left_out_and_counted() -> None:
    schema = schema_of()
    ahead = Row(A_ROW.time + 3600 * SECOND, True, "u", "i", ("a", "b"), ("x", "f"))
    book = reference(schema, [impression(ahead, 0, A_ROW.time), click(ahead, 0, A_ROW.time)])
    assert book.counts == {"impressions_in_future": 1, "clicks_in_future": 1}
    assert not rows(book)


def test_a_late_impression_is_left_out_and_counted() -> None:
    schema = schema_of({"feedback_delay": 60})
    book = reference(schema, [tick(A_ROW.time + 61 * SECOND), impression(A_ROW, 0, 0), click(A_ROW, 0, 0)])
    assert book.counts["impressions_too_late"] == 1 and not rows(book)


def test_a_kill_between_transactions_changes_nothing(tmp_path) -> None:
    """The file is opened again after every batch."""
    schema = schema_of({"feedback_delay": {"click": 5, "no_click": 60}}, [{"name": "last", "of": "item_id"}], [1, 0])
    draw = random.Random(3)
    log = [
        Row(A_ROW.time + n * 7000 * SECOND, draw.random() < 0.4, f"u{n % 3}", f"i{n % 4}", ("a", "b"), ("x", "f"))
        for n in range(60)
    ]
    records = [Record("start", 0), *disordered(log, 40 * SECOND, draw)]
    expected = reference(schema, records, 2 * SECOND)
    place = 0
    while place < len(records):
        book = book_for(schema, 2 * SECOND, tmp_path / "state.db")
        step = draw.randrange(1, 9)
        run(book, schema, records[place : place + step])
        with pytest.raises(RuntimeError, match="killed"):
            with book.transaction():
                from serving.feedback.join import play

                play(book, schema, tick(A_ROW.time + 10**9 * SECOND))
                raise RuntimeError("killed")
        book.close()
        place += step
    again = book_for(schema, 2 * SECOND, tmp_path / "state.db")
    assert rows(again) == rows(expected) and again.counts == expected.counts
    again.close()
    expected.close()
