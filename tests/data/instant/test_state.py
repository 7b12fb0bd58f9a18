"""States: outcomes that come late, what a store keeps, and candidates of one request at once."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.instant import oracle
from tests.data.instant.logs import Store, assert_same_bits, definition, definitions, fitted, logs, outcome, read
from tests.data.instant.oracle import Row
from thinktwice.data.instant.columns import from_bytes, from_columns, state_columns, to_bytes, to_columns
from thinktwice.data.instant.definition import RESIDUAL_BITS, Definition, Side, definition_of
from thinktwice.data.instant.keys import key_hash
from thinktwice.data.instant.log_states import log_state, log_states, recent_states
from thinktwice.data.instant.recent import recent_outcomes
from thinktwice.data.instant.state import NEVER, Outcome, State, StateKind, empty_states, state_type, values
from thinktwice.data.sources.registry import builtin_schema
from thinktwice.errors import FeatureStoreError
from thinktwice.schema import InstantStatistics, Statistics

KINDS: tuple[StateKind, ...] = ("user", "item", "log", "recent")


def filled(log: list[Row], found: Definition, order: list[int]) -> Store:
    """A store that got the outcomes of the rows in an order."""
    store = Store(found)
    for place in order:
        store.apply(outcome(log[place], found))
    return store


def known_order(log: list[Row], found: Definition) -> list[int]:
    return sorted(range(len(log)), key=lambda n: log[n].time + found.delay(log[n].clicked))


def touched(log: list[Row], found: Definition, order: list[int]) -> list[bool]:
    """Whether an outcome, or the latest one of its item before it, came before one that was known earlier or after one known later."""
    at = [row.time + found.delay(row.clicked) for row in log]
    came = {row: place for place, row in enumerate(order)}
    rows = range(len(log))
    moved = [any((at[m] < at[n]) != (came[m] < came[n]) for m in rows if at[m] != at[n]) for n in rows]
    out = []
    for n in rows:
        earlier = [m for m in rows if log[m].item == log[n].item is not None and at[m] < at[n]]
        latest = max((at[m] for m in earlier), default=None)
        out.append(moved[n] or any(moved[m] for m in earlier if at[m] == latest))
    return out


@settings(max_examples=60)
@given(
    log=logs(most=25), found=definitions, seed=st.integers(0, 99), watermark=st.sampled_from((1, 60_000_000, 10**14))
)
def test_late_outcomes_change_no_count(log: list[Row], found: Definition, seed: int, watermark: int) -> None:
    """Outcomes that come up to a watermark late: all counts, clicks, times and lists are those of the log in order, to the bit.

    The sum of a user's residuals differs by at most one for each outcome that disorder touched.
    """
    log, draw = fitted(log, found), random.Random(seed)
    at = [row.time + found.delay(row.clicked) for row in log]
    late = sorted(range(len(log)), key=lambda n: (at[n] + draw.randrange(watermark), draw.random()))
    expected, got = filled(log, found, known_order(log, found)), filled(log, found, late)
    for name in ("views", "clicks", "known_at", "before_views", "before_clicks"):
        assert expected.log[name] == got.log[name]
    assert expected.recent.keys() == got.recent.keys()
    for key, state in expected.recent.items():
        assert state.tobytes() == got.recent[key].tobytes()
    rates = {"log_views", "log_clicks", "before_log_views", "before_log_clicks"}
    residuals = {"residual", "last_mark", "bucket_sums", "crossed_sums"}
    hit = touched(log, found, late)
    for store, other, may_differ in (
        (expected.items, got.items, rates),
        (expected.users, got.users, rates | residuals),
    ):
        for key, state in store.items():
            for name in state.dtype.names or ():
                if name not in may_differ:
                    np.testing.assert_array_equal(state[name], other[key][name], err_msg=name)
    for key, state in expected.users.items():
        most = sum(hit[n] for n in range(len(log)) if log[n].user == key) << RESIDUAL_BITS
        assert abs(int(state["residual"][0]) - int(got.users[key]["residual"][0])) <= most
        if not any(hit):
            assert state.tobytes() == got.users[key].tobytes()


@settings(max_examples=60)
@given(log=logs(most=25), found=definitions, later=st.sampled_from((1, 10**9, 10**12)))
def test_candidates_of_a_request_are_scored_at_once(log: list[Row], found: Definition, later: int) -> None:
    log = fitted(log, found)
    store = filled(log, found, known_order(log, found))
    instant = log[-1].time + found.click_delay + found.no_click_delay + later
    last = outcome(log[-1], found)
    asked = [outcome(row, found) for row in log]
    rows = [Outcome(last.user, o.item, instant, False, o.topics, last.attributes) for o in asked]
    items = np.concatenate([store.items.get(o.item or "", empty_states(found, "item")) for o in rows])
    topics = np.array([o.topics for o in rows])
    together = values(found, store.users.get(last.user or ""), items, instant, topics, np.array(last.attributes))
    one_by_one = np.array([store.values(o) for o in rows])
    assert_same_bits(together, one_by_one, found.names)
    expected = oracle.counters(
        [*log, Row(instant, False, last.user, log[0].item, log[0].topics, log[-1].attributes)], found
    )
    known = ~np.isnan(expected[-1])
    np.testing.assert_array_equal(known, ~np.isnan(together[0]))
    np.testing.assert_allclose(together[0][known], expected[-1][known], rtol=1e-6)


@settings(max_examples=60)
@given(log=logs(most=25), found=definitions)
def test_a_store_keeps_every_bit(log: list[Row], found: Definition) -> None:
    store = filled(fitted(log, found), found, list(range(len(log))))
    states: dict[StateKind, list[State]] = {
        "user": list(store.users.values()),
        "item": list(store.items.values()),
        "recent": list(store.recent.values()),
        "log": [store.log],
    }
    for kind, of_kind in states.items():
        every = np.concatenate([*of_kind, empty_states(found, kind)])
        assert from_columns(found, kind, to_columns(every)).tobytes() == every.tobytes()
        assert from_bytes(found, kind, to_bytes(every)).tobytes() == every.tobytes()
        columns = state_columns(found, kind)
        assert [c.name for c in columns] == list(to_columns(every))
        for column in columns:
            listed = to_columns(every)[column.name]
            assert np.asarray(listed).shape[1:] == (() if column.length is None else (column.length,))
            assert np.can_cast(np.min_scalar_type(np.min(listed)), column.type)
            assert np.iinfo(column.type).max >= np.max(listed)


@settings(max_examples=60)
@given(
    log=logs(),
    found=definitions,
    place=st.integers(0, 40),
    later=st.sampled_from((0, 1, 10**9, 10**13)),
    chunk=st.integers(1, 4),
)
def test_a_whole_log_leads_to_the_states_of_its_outcomes(
    log: list[Row], found: Definition, place: int, later: int, chunk: int
) -> None:
    log = fitted(log, found)
    instant = log[min(place, len(log) - 1)].time + later
    known = [n for n in known_order(log, found) if log[n].time + found.delay(log[n].clicked) < instant]
    expected, rows = filled(log, found, known), read(log, found)
    assert log_state(rows, found, instant).tobytes() == expected.log.tobytes()
    sides: tuple[tuple[Side, dict[str, State]], ...] = (("user", expected.users), ("item", expected.items))
    made = {kind: list(log_states(rows, found, kind, instant, chunk)) for kind, _ in sides if getattr(found, kind)}
    stored: dict[str, dict[str, State]] = dict(sides)
    if found.user and found.item:
        made["recent"] = list(recent_states(rows, found, instant, chunk))
        nothing = empty_states(found, "recent").tobytes()
        stored["recent"] = {key: state for key, state in expected.recent.items() if state.tobytes() != nothing}
    for kind, parts in made.items():
        got = {key: state.tobytes() for ids, states in parts for key, state in zip(ids, states, strict=True)}
        assert got == {key: state[0].tobytes() for key, state in stored[kind].items()}


def test_a_missing_state_is_an_empty_one() -> None:
    found = definition({})
    for kind in KINDS:
        empty = empty_states(found, kind)
        assert from_bytes(found, kind, [None]).tobytes() == empty.tobytes()
        nothing = {c.name: [None] for c in state_columns(found, kind)}
        assert from_columns(found, kind, nothing).tobytes() == empty.tobytes()
    counted = values(found, None, empty_states(found, "item", 3), 0, np.zeros((3, 2), int), np.zeros(2, int))
    assert counted.shape == (3, len(found.names)) and np.isnan(counted).all()


def test_a_state_of_another_definition_is_refused() -> None:
    found, other = definition({}), definition({"last": [3]})
    with pytest.raises(FeatureStoreError, match=r"a user state has .* bytes, its definition .*: fill the store again"):
        from_bytes(found, "user", to_bytes(empty_states(other, "user")))
    columns = to_columns(empty_states(found, "item"))
    with pytest.raises(FeatureStoreError, match="lack the column 'views'"):
        from_columns(found, "item", {k: v for k, v in columns.items() if k != "views"})
    for wrong in ([[1, 2]], ["many"], [2**70], [None]):
        with pytest.raises(FeatureStoreError, match="cannot be read"):
            from_columns(found, "item", columns | {"views": wrong})


def test_states_are_small() -> None:
    """Of the defaults with two hashed topics and two hashed attributes: what a request reads is about 1 KB an item."""
    found = definition_of(
        builtin_schema("sim").model_copy(update={"statistics": Statistics(instant=InstantStatistics())})
    )
    assert found is not None and all(c.allowed is None for c in found.topics + found.attributes)
    assert state_type(found, "user").itemsize <= 2048
    assert state_type(found, "item").itemsize <= 1152
    assert state_type(found, "recent").itemsize <= 4096


@settings(max_examples=60)
@given(log=logs(), found=definitions)
def test_recent_outcomes_are_ranges_of_one_list(log: list[Row], found: Definition) -> None:
    log = fitted(log, found)
    lists = recent_outcomes(read(log, found), found)
    for row, start, end in zip(log, lists.start, lists.end, strict=True):
        got = [(log[n].item, log[n].clicked) for n in lists.outcomes[start:end]]
        assert got == (oracle.recent(log, row, found) if found.user and found.item else [])


def test_only_the_latest_200_outcomes_are_recent() -> None:
    found = definition({"feedback_delay": 0})
    log = [Row(n, n % 3 == 0, "u", f"i{n % 7}", (None, None), (None, None)) for n in range(300)]
    log.append(Row(1000, False, "u", None, (None, None), (None, None)))
    lists = recent_outcomes(read(log, found), found)
    assert (lists.end[-1] - lists.start[-1], lists.end[150] - lists.start[150]) == (200, 150)
    assert lists.outcomes[lists.start[-1] : lists.end[-1]].tolist() == list(range(100, 300))
    state = filled(log, found, list(range(301))).recent["u"][0]
    assert state["at"].tolist() == list(range(100, 300))
    hashes = np.array([key_hash(f"i{n % 7}") for n in range(100, 300)], np.uint64)
    assert (state["item"].astype(np.uint64) == hashes).all() and NEVER not in state["at"]
    assert state["clicked"].tolist() == [n % 3 == 0 for n in range(100, 300)]
