"""Random logs and definitions, and the three ways to count them."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from tests.data.instant.oracle import Row
from thinktwice.data.instant.definition import Definition, definition_of
from thinktwice.data.instant.keys import slots_of
from thinktwice.data.instant.log_counters import LogRows, log_counters, log_rows
from thinktwice.data.instant.state import Outcome, State, apply, empty_states, values
from thinktwice.schema import LogSchema, parse_schema

MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
STEPS = (0, 0, 1, MINUTE, 5 * MINUTE, 5 * MINUTE - 1, HOUR, 11 * HOUR, DAY, 7 * DAY, 900 * DAY)
STARTS = (0, -40 * DAY, -1, 1_700_000_000_000_000, 5 * MINUTE)


def schema_of(instant: dict[str, Any], *, user: bool = True, item: bool = True) -> LogSchema:
    """A log with a hashed and an exact topic and attribute, as far as it has users and items."""
    keys = {"user": {"key": "user_id"}} if user else {}
    keys |= {"item": {"key": "item_id"}} if item else {}
    fields: list[dict[str, Any]] = [{"name": "site"}]
    if item:
        fields += [{"name": "genre", "entity": "item"}, {"name": "kind", "entity": "item", "allowed": ["a", "b"]}]
    if user:
        fields += [{"name": "city", "entity": "user"}, {"name": "sex", "entity": "user", "allowed": ["f", "m"]}]
    content = {
        "name": "t",
        "time": {"column": "ts"},
        "entities": keys,
        "fields": fields,
        "statistics": {"instant": instant},
    }
    return parse_schema(json.dumps(content), where="test")


def definition(instant: dict[str, Any], *, user: bool = True, item: bool = True) -> Definition:
    found = definition_of(schema_of(instant, user=user, item=item))
    assert found is not None
    return found


seconds = st.sampled_from((0, 1, 60, 600, 3600, 86_400))
definitions = st.builds(
    lambda click, no_click, last, windows, topic_slots, attribute_slots, sides: definition(
        {
            "feedback_delay": {"click": click, "no_click": no_click},
            "last": last,
            "windows": windows,
            "topic_slots": topic_slots,
            "attribute_slots": attribute_slots,
        },
        user=sides[0],
        item=sides[1],
    ),
    seconds,
    seconds,
    st.lists(st.integers(1, 6), unique=True, max_size=3),
    st.lists(st.sampled_from(("hour", "day", "week")), unique=True, max_size=3),
    st.integers(2, 5),
    st.integers(2, 3),
    st.sampled_from(((True, True),) * 5 + ((True, False), (False, True))),
)


@st.composite
def logs(draw: st.DrawFn, *, most: int = 40) -> list[Row]:
    """Rows in time order: ties, gaps from a microsecond to years, missing ids and values, any labels."""
    size = draw(st.integers(1, most))
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=size, max_size=size))
    labels = draw(st.sampled_from((st.booleans(), st.just(True), st.just(False))))
    users, items = st.sampled_from((None, "u", "v", "é")), st.sampled_from((None, "i", "j", "k", "l"))
    value = st.sampled_from((None, "a", "b", "c"))
    exact = st.sampled_from((None, "a", "b"))
    sex = st.sampled_from((None, "f", "m"))
    rows, time = [], draw(st.sampled_from(STARTS))
    for step in steps:
        time += step
        rows.append(
            Row(
                time,
                draw(labels),
                draw(users),
                draw(items),
                (draw(value), draw(exact)),
                (draw(value), draw(sex)),
            )
        )
    return rows


def fitted(log: Sequence[Row], found: Definition) -> list[Row]:
    """The rows with as many topics and attributes, and with the ids, that a definition has."""
    return [
        Row(
            r.time,
            r.clicked,
            r.user if found.user else None,
            r.item if found.item else None,
            r.topics[: len(found.topics)],
            r.attributes[: len(found.attributes)],
        )
        for r in log
    ]


def frame(log: Sequence[Row]) -> pl.DataFrame:
    """The log as a clean log has it."""
    return pl.DataFrame(
        {
            "row_id": [f"{n:016x}" for n in range(len(log))],
            "event_time": pl.Series([r.time for r in log], dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            "label": pl.Series([int(r.clicked) for r in log], dtype=pl.Int8),
            "user_id": pl.Series([r.user for r in log], dtype=pl.String),
            "item_id": pl.Series([r.item for r in log], dtype=pl.String),
            **{
                name: pl.Series([values[n] if len(values) > n else None for values in column], dtype=pl.String)
                for names, column in (
                    (("genre", "kind"), [r.topics for r in log]),
                    (("city", "sex"), [r.attributes for r in log]),
                )
                for n, name in enumerate(names)
            },
        }
    )


def read(log: Sequence[Row], found: Definition) -> LogRows:
    table = frame(log)
    return log_rows(lambda name: table[name], found)


def by_log(log: Sequence[Row], found: Definition, chunk_rows: int = 7) -> np.ndarray:
    """Counters by the pass over the whole log."""
    with tempfile.TemporaryDirectory() as scratch:
        return np.concatenate(list(log_counters(read(log, found), found, Path(scratch), chunk_rows)))


def outcome(row: Row, found: Definition) -> Outcome:
    topics = dict(zip([c.field for c in found.topics], row.topics, strict=False))
    attributes = dict(zip([c.field for c in found.attributes], row.attributes, strict=False))
    slots = slots_of(found.topics, topics), slots_of(found.attributes, attributes)
    return Outcome(row.user, row.item, row.time, row.clicked, *slots)


class Store:
    """States in memory."""

    def __init__(self, found: Definition) -> None:
        self.definition = found
        self.log = empty_states(found, "log")
        self.users: dict[str, State] = {}
        self.items: dict[str, State] = {}
        self.recent: dict[str, State] = {}

    def apply(self, one: Outcome) -> None:
        found = self.definition
        user = item = recent = None
        if one.user is not None:
            user = self.users.setdefault(one.user, empty_states(found, "user"))
            recent = self.recent.setdefault(one.user, empty_states(found, "recent"))
        if one.item is not None:
            item = self.items.setdefault(one.item, empty_states(found, "item"))
        apply(found, one, self.log, user, item, recent)

    def values(self, one: Outcome) -> np.ndarray:
        found = self.definition
        empty = empty_states(found, "item") if found.item else np.zeros(1, np.dtype([("nothing", "i8")]))
        items = self.items.get(one.item or "", empty)
        return values(found, self.users.get(one.user or ""), items, one.time, np.array([one.topics]), one.attributes)[0]


def by_state(log: Sequence[Row], found: Definition, seed: int = 0) -> np.ndarray:
    """Counters by states; outcomes of one instant come in a random order."""
    outcomes = [outcome(row, found) for row in log]
    draw = random.Random(seed)
    waiting = sorted(outcomes, key=lambda o: (o.time + found.delay(o.clicked), draw.random()))
    store, out, place = Store(found), [], 0
    for one in outcomes:
        while place < len(waiting) and waiting[place].time + found.delay(waiting[place].clicked) < one.time:
            store.apply(waiting[place])
            place += 1
        out.append(store.values(one))
    return np.array(out, np.float32)


def assert_same_bits(one: np.ndarray, other: np.ndarray, names: Sequence[str]) -> None:
    """NaN equals NaN, whatever its bits."""
    assert one.dtype == other.dtype == np.float32 and one.shape == other.shape
    differ = (one.view(np.int32) != other.view(np.int32)) & ~(np.isnan(one) & np.isnan(other))
    assert not differ.any(), [names[c] for c in np.flatnonzero(differ.any(axis=0))]
