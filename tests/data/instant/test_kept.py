"""Counters that are kept between requests are those of the states, to the bit."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.instant.logs import Store, assert_same_bits, definition, definitions, fitted, logs, outcome
from tests.data.instant.oracle import Row
from thinktwice.data.instant.columns import from_bytes, to_bytes
from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.kept import KeptCounters, Marks
from thinktwice.data.instant.state import State, empty_states, values
from thinktwice.errors import FeatureStoreError

HEADER = b"\x01\x02"
STEPS = (0, 1, 299_999_999, 300_000_000, 3_600_000_000, 90_000_000_000, -300_000_000, -90_000_000_000)


def stored(states: dict[str, State], key: str | None, header: bytes = b"") -> bytes | None:
    state = states.get(key or "")
    return None if state is None else header + to_bytes(state)[0]


class Marked:
    """Marks of states as a source gives them: a new version for a new state, and now and then for the same one."""

    def __init__(self, stride: int) -> None:
        self._stride, self._last = stride, 0
        self._slots: dict[str | None, int] = {}
        self._kept: dict[str | None, tuple[bytes | None, int]] = {}

    def __call__(self, keys: list[str | None], contents: list[bytes | None], draw: random.Random) -> Marks:
        slots, versions = [], []
        for key, content in zip(keys, contents, strict=True):
            if key not in self._kept or self._kept[key][0] != content or draw.random() < 0.1:
                self._last += 1
                self._kept[key] = content, self._last
            slots.append(self._slots.setdefault(key, self._stride * len(self._slots)))
            versions.append(self._kept[key][1])
        return Marks(np.array(slots, np.int64), np.array(versions, np.int64))


def expected(found: Definition, user: bytes | None, items: list[bytes | None], *rest: object) -> np.ndarray:
    decoded = from_bytes(found, "item", items, HEADER) if found.item else np.zeros(len(items), [("nothing", "i8")])
    return values(found, from_bytes(found, "user", [user]) if found.user else None, decoded, *rest)  # type: ignore[arg-type]


@settings(max_examples=100)
@given(
    log=logs(most=25),
    found=definitions,
    seed=st.integers(0, 2**31),
    capacity=st.sampled_from((1, 2, 3, None)),
    each=st.integers(1, 4),
    stride=st.sampled_from((1, 3)),
)
def test_any_sequence_of_updates_gives_the_values_of_the_states(
    log: list[Row], found: Definition, seed: int, capacity: int | None, each: int, stride: int
) -> None:
    """Requests at drawn instants, also back in time, between the outcomes of a log in a drawn order; some have marks, of slots that
    share their place."""
    log, draw = fitted(log, found), random.Random(seed)
    kept, store, instant = KeptCounters(found, HEADER, capacity), Store(found), log[-1].time
    marked = Marked(stride)
    for row in draw.sample(log, len(log)):
        store.apply(outcome(row, found))
        for _ in range(each):
            instant += draw.choice(STEPS)
            asked = [outcome(draw.choice(log), found) for _ in range(draw.randint(1, 6))]
            user = stored(store.users, asked[0].user)
            items = [stored(store.items, one.item, HEADER) for one in asked]
            topics = np.array([one.topics for one in asked], np.int64).reshape(len(asked), len(found.topics))
            attributes = asked[0].attributes
            marks = draw.choice((None, marked([one.item for one in asked], items, draw)))
            got = kept.values(user, items, instant, topics, attributes, marks)
            assert_same_bits(got, expected(found, user, items, instant, topics, np.array(attributes)), found.names)


def test_the_capacity_bounds_what_is_kept() -> None:
    found = definition({})
    kept, states = KeptCounters(found, b"", 5), empty_states(found, "item", 40)
    states["views"] = np.arange(40)
    none = np.full((8, len(found.topics)), -1)
    for start in range(0, 40, 8):
        kept.values(None, to_bytes(states[start : start + 8]), 10**15, none, (-1,) * len(found.attributes))
    side = kept._item
    assert side is not None and len(side._places) == len(side._contents) == 5


def test_a_state_of_another_definition_is_refused_and_not_kept() -> None:
    found, other = definition({}), definition({"last": [3]})
    kept, none = KeptCounters(found), np.full((2, len(found.topics)), -1)
    wrong = [None, to_bytes(empty_states(other, "item"))[0]]
    for _ in range(2):
        with pytest.raises(FeatureStoreError, match="item state"):
            kept.values(None, wrong, 10**15, none, (-1,) * len(found.attributes))
    assert np.isnan(kept.values(None, [None] * 2, 10**15, none, (-1,) * len(found.attributes))).all()


def test_threads_share_what_is_kept() -> None:
    found = definition({})
    states = empty_states(found, "item", 60)
    states["views"], states["clicks"], states["seen_at"] = np.arange(60), np.arange(60) // 2, 10**15
    states["known_at"] = 10**15
    contents: list[bytes | None] = [*to_bytes(states)]
    kept, wrong = KeptCounters(found, b"", 20), []
    none, attributes = np.full((30, len(found.topics)), -1), (-1,) * len(found.attributes)

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            chosen, instant = draw.sample(range(60), 30), 10**15 + draw.choice((0, 400_000_000))
            got = kept.values(None, [contents[n] for n in chosen], instant, none, attributes)
            want = values(found, None, states[chosen], instant, none, np.array(attributes))
            if not np.array_equal(got, want, equal_nan=True):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
