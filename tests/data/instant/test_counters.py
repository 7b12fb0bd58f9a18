"""One definition, three ways to count: the pass over a log, states, and a slow oracle; and what no row may see."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.instant import oracle
from tests.data.instant.logs import (
    DAY,
    HOUR,
    MINUTE,
    assert_same_bits,
    by_log,
    by_state,
    definition,
    definitions,
    fitted,
    logs,
)
from tests.data.instant.oracle import Row
from thinktwice.data.instant.definition import Definition
from thinktwice.splitmix import mix


@settings(max_examples=80)
@given(log=logs(), found=definitions, seed=st.integers(0, 9), chunk=st.integers(1, 50))
def test_a_log_and_states_give_the_same_bits(log: list[Row], found: Definition, seed: int, chunk: int) -> None:
    log = fitted(log, found)
    assert_same_bits(by_log(log, found, chunk), by_state(log, found, seed), found.names)


@settings(max_examples=80)
@given(log=logs(most=25), found=definitions)
def test_both_are_what_the_definition_says(log: list[Row], found: Definition) -> None:
    log = fitted(log, found)
    counted, expected = by_log(log, found), oracle.counters(log, found)
    exact = [n for n, c in enumerate(found.counters) if c.kind in ("rate", "residual")]
    assert_same_bits(counted[:, exact], expected[:, exact], [found.names[n] for n in exact])
    np.testing.assert_array_equal(np.isnan(counted), np.isnan(expected))
    np.testing.assert_array_max_ulp(np.nan_to_num(counted), np.nan_to_num(expected), maxulp=1)  # logarithms


@settings(max_examples=40)
@given(log=logs(), found=definitions, place=st.integers(0, 40))
def test_labels_after_an_instant_change_nothing_up_to_it(log: list[Row], found: Definition, place: int) -> None:
    log = fitted(log, found)
    instant = log[min(place, len(log) - 1)].time
    flipped = [replace(r, clicked=not r.clicked) if r.time > instant else r for r in log]
    seen = [n for n, r in enumerate(log) if r.time <= instant]
    assert_same_bits(by_log(log, found)[seen], by_log(flipped, found)[seen], found.names)
    assert_same_bits(by_state(log, found)[seen], by_state(flipped, found)[seen], found.names)


@settings(max_examples=60)
@given(log=logs(), found=definitions, place=st.integers(0, 40))
def test_a_row_sees_no_label_of_its_own_instant(log: list[Row], found: Definition, place: int) -> None:
    log = fitted(log, found)
    instant = log[min(place, len(log) - 1)].time
    flipped = [replace(r, clicked=not r.clicked) if r.time == instant else r for r in log]
    seen = [n for n, r in enumerate(log) if r.time == instant]
    assert_same_bits(by_log(log, found)[seen], by_log(flipped, found)[seen], found.names)


@settings(max_examples=60)
@given(log=logs(), found=definitions, seed=st.integers(0, 99))
def test_the_order_of_the_rows_of_one_instant_means_nothing(log: list[Row], found: Definition, seed: int) -> None:
    log = fitted(log, found)
    places = np.random.default_rng(seed).permutation(len(log))
    order = sorted(range(len(log)), key=lambda n: (log[n].time, places[n]))
    assert_same_bits(by_log([log[n] for n in order], found), by_log(log, found)[order], found.names)


@settings(max_examples=60)
@given(log=logs(), found=definitions)
def test_an_outcome_waits_for_its_delay(log: list[Row], found: Definition) -> None:
    """Without the first row, the counts of its keys are the same until its outcome is known, and lower from then on."""
    log = fitted(log, found)
    first, rest = log[0], log[1:]
    known = first.time + found.delay(first.clicked)
    if not rest:
        return
    with_first, without = np.nan_to_num(by_log(log, found)[1:]), np.nan_to_num(by_log(rest, found))
    for side in ("user", "item"):
        key = getattr(first, side)
        if key is not None:
            column = found.names.index(f"{side}_views")
            counts = [r.time > known and getattr(r, side) == key for r in rest]
            np.testing.assert_array_equal(with_first[:, column] > without[:, column], counts)


@settings(max_examples=40)
@given(log=logs(), found=definitions)
def test_every_row_has_the_evidence_of_its_own_keys(log: list[Row], found: Definition) -> None:
    """Rows of other users and items matter by the rate of the log alone: without them the counts stay."""
    log = fitted(log, found)
    last = log[-1]
    for side in ("user", "item"):
        if getattr(last, side) is None:
            continue
        mine = [r for r in log if getattr(r, side) == getattr(last, side)]
        counts = [n for n, c in enumerate(found.counters) if c.side == side and c.kind in ("count", "seconds")]
        if mine[-1] is last:
            assert_same_bits(
                by_log(mine, found)[-1:, counts], by_log(log, found)[-1:, counts], [found.names[n] for n in counts]
            )


def test_clicks_and_non_clicks_may_have_different_delays() -> None:
    found = definition({"feedback_delay": {"click": "5s", "no_click": "10m"}, "last": [], "windows": []})
    start = 1_700_000_000_000_000
    log = [
        Row(start, True, "u", "i"),
        Row(start, False, "u", "i"),
        *(Row(start + after, False, "u", "i") for after in (5_000_000, 5_000_001, 10 * MINUTE, 10 * MINUTE + 1)),
    ]
    rows = fitted([replace(r, topics=(None, None), attributes=(None, None)) for r in log], found)
    views = np.expm1(np.nan_to_num(by_log(rows, found)[:, found.names.index("user_views")]))
    np.testing.assert_allclose(views, [0, 0, 0, 1, 1, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("window", "width", "buckets"), [("hour", 5 * MINUTE, 12), ("day", HOUR, 24), ("week", DAY, 7)]
)
def test_a_window_ends_where_its_buckets_do(window: str, width: int, buckets: int) -> None:
    """An outcome at the very start of a bucket is seen until the bucket has left the window, whenever the row comes."""
    found = definition({"feedback_delay": 0, "topics": [], "attributes": [], "last": [], "windows": [window]})
    start = 100 * DAY
    ages = [1, width - 1, width, buckets * width - 1, buckets * width, buckets * width + 1]
    log = [Row(start, True, "u", "i"), *(Row(start + age, True, f"other {age}", "i") for age in ages)]
    first_only = [log[0], *(replace(r, user="u", item=None) for r in log[1:])]
    column = found.names.index(f"item_views_{window}")
    for n, age in enumerate(ages, 1):
        alone = by_log([log[0], log[n]], found)[-1, column]
        assert alone == np.float32(np.log1p(1 if age < buckets * width else 0)), age
    column = found.names.index(f"user_views_{window}")
    counted = np.expm1(by_log(first_only, found)[1:, column])
    np.testing.assert_allclose(counted, [1, 2, 3, 4, 2, 3], atol=1e-5)


def test_the_counters_of_a_busy_day() -> None:
    """2,000 rows of 20 users and 30 items within three days: every window, list and slot is in use."""
    size = 2_000

    def draw(salt: int, number: int) -> list[int]:
        return (mix(np.arange(size, dtype=np.uint64) + np.uint64(salt * 10**6)) % np.uint64(number)).tolist()

    def choose(salt: int, values: str) -> list[str | None]:
        return [None if values[n] == "-" else values[n] for n in draw(salt, len(values))]

    log = [
        Row(time * 1_000_000, click < 3, f"u{user}", f"i{item}", (genre, kind), (city, sex))
        for time, click, user, item, genre, kind, city, sex in zip(
            sorted(draw(1, 3 * 86_400)), draw(2, 10), draw(3, 20), draw(4, 30), choose(5, "abcdefg-"), choose(6, "ab-"),
            choose(7, "xyz-"), choose(8, "fm-"), strict=True,
        )
    ]  # fmt: skip
    found = definition({"feedback_delay": {"click": 30, "no_click": 600}})
    counted = by_log(log, found, 333)
    assert_same_bits(counted, by_state(log, found), found.names)
    assert np.isfinite(
        counted[1_000:, [found.names.index(n) for n in ("user_residual_last_50", "item_rate_day")]]
    ).all()
    # Frozen: another value needs another FORMAT of the definition.
    assert hashlib.sha256(np.nan_to_num(counted, nan=-9.0).tobytes()).hexdigest() == (
        "cfb427816643e364c372753c638f81d06701e0de53a406b3b44e33b3f18bd791"
    )
    assert len({tuple(row) for row in np.nan_to_num(counted[1_000:])}) > 990
