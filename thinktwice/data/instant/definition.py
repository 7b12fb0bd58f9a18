"""Definition of the counters of a schema: names, order, keys, constants, and the hash of everything that changes a value.

An *outcome* is an impression whose label is known. The outcome of an impression at ``t`` is known at ``t + delay``, with
the delay of its label. A row at ``t`` counts the outcomes known strictly before ``t``, so a row never counts itself or
another row of the same instant. All instants are integer microseconds of UTC.

*Windows* are made of aligned buckets (:data:`WINDOWS`). A window of ``n`` buckets at instant ``t`` counts the outcomes known before
``t`` and in the bucket of ``t`` or one of the ``n - 1`` before it, where the bucket of an instant is ``floor(instant / width)``. So
the hour reaches 55 to 60 minutes back, the day 23 to 24 hours, the week 6 to 7 days.

*The last k* outcomes of a user or an item are those that became known last; ties are broken by the higher
:func:`thinktwice.data.instant.keys.ties`, then in favour of clicks. Nothing depends on row ids or on the order of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash

from thinktwice.files import json_bytes, sha256_text
from thinktwice.schema import LogSchema

Side = Literal["user", "item"]
Kind = Literal["count", "seconds", "rate", "residual"]

#: Increased by every change of code that changes a value or a state. Part of the hash.
FORMAT = 1
SECOND_US = 1_000_000
#: Width of a bucket in microseconds and number of buckets.
WINDOWS = {"hour": (300 * SECOND_US, 12), "day": (3600 * SECOND_US, 24), "week": (86_400 * SECOND_US, 7)}
#: The click rate of the log as a whole is (clicks + 10 * 0.1) / (outcomes + 10).
FIRST_RATE, FIRST_VIEWS = 0.1, 10.0
#: Weight, in outcomes, of the prior that a rate is smoothed towards.
RATE_PRIOR = 20.0
#: Weight, in outcomes, of a residual of 0 in every residual rate.
RESIDUAL_PRIOR = 2.0
#: Residuals are integers in units of 2**-20, so sums are exact in any order of addition.
RESIDUAL_BITS = 20
#: Bits of the tie-break between outcomes of one instant.
TIE_BITS = 10
#: Outcomes in a user's list of recent ones.
RECENT = 200


@dataclass(frozen=True)
class Counter:
    """One counter: ``count`` is log(1 + outcomes), ``seconds`` log(1 + seconds), ``rate`` a click rate, ``residual`` a mean residual.

    ``crossed`` is the field whose value is part of the key: a topic of the item or an attribute of the user.
    """

    name: str
    side: Side
    kind: Kind
    crossed: str = ""


@dataclass(frozen=True)
class Crossed:
    """A field whose values have slots. With ``allowed`` each value has its own, otherwise a hash of the value chooses one."""

    field: str
    slots: int
    allowed: tuple[str, ...] | None

    def slot(self, value: str | None) -> int:
        """The slot of a spelled value; -1 if it is missing or not allowed."""
        if value is None:
            return -1
        if self.allowed is not None:
            return self.allowed.index(value) if value in self.allowed else -1
        return int(xxhash.xxh3_64_intdigest(value.encode()) % self.slots)


@dataclass(frozen=True)
class Window:
    """A window of ``buckets`` aligned buckets of ``width`` microseconds."""

    name: str
    width: int
    buckets: int


@dataclass(frozen=True, eq=False)
class Buckets:
    """The buckets of W windows side by side, B in all.

    width, number [W]: width and number of each window's buckets
    starts [W]: position of each window's first bucket
    window [B]: the window of each bucket
    place [B]: the bucket's position in its window
    wrap [B]: number of buckets of its window
    blocks [B, W]: 1 where the bucket is of the window, else 0
    """

    width: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    window: npt.NDArray[np.int64]
    place: npt.NDArray[np.int16]
    wrap: npt.NDArray[np.int16]
    blocks: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Definition:
    """The counters of one schema; make it with :func:`definition_of`.

    ``user`` and ``item`` are the id columns, None for a log without them. Delays are in microseconds.
    """

    user: str | None
    item: str | None
    click_delay: int
    no_click_delay: int
    topics: tuple[Crossed, ...]
    attributes: tuple[Crossed, ...]
    last: tuple[int, ...]
    windows: tuple[Window, ...]

    @cached_property
    def counters(self) -> tuple[Counter, ...]:
        """All counters in the order of their values: those of the user, then those of the item."""
        return self.counters_of("user") + self.counters_of("item")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of :attr:`counters`."""
        return tuple(c.name for c in self.counters)

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of all settings and constants that change a value."""
        content = {
            "format": FORMAT,
            "keys": [self.user, self.item],
            "delays": [self.click_delay, self.no_click_delay],
            "topics": [[c.field, c.slots, c.allowed] for c in self.topics],
            "attributes": [[c.field, c.slots, c.allowed] for c in self.attributes],
            "last": self.last,
            "windows": [[w.name, w.width, w.buckets] for w in self.windows],
            "constants": [FIRST_RATE, FIRST_VIEWS, RATE_PRIOR, RESIDUAL_PRIOR, RESIDUAL_BITS, TIE_BITS, RECENT],
            "counters": [[c.name, c.side, c.kind, c.crossed] for c in self.counters],
        }
        return sha256_text(json_bytes(content).decode())

    @cached_property
    def buckets(self) -> Buckets:
        """Positions of the windows' buckets in a state."""
        number = np.array([w.buckets for w in self.windows], np.int64)
        window = np.repeat(np.arange(len(number)), number)
        starts = np.cumsum(number) - number
        width = np.array([w.width for w in self.windows], np.int64)
        place, wrap = np.arange(len(window)) - starts[window], number[window]
        blocks = (window[:, None] == np.arange(len(number))).astype(np.float64)
        return Buckets(width, number, starts, window, place.astype(np.int16), wrap.astype(np.int16), blocks)

    @cached_property
    def latest(self) -> npt.NDArray[np.float64]:
        """[L, K] for the L latest outcomes, oldest first: 1 where an outcome is among the latest k, else 0."""
        length = max(self.last, default=0)
        return (np.arange(length)[:, None] >= length - np.array(self.last, np.int64)).astype(np.float64)

    @cached_property
    def slot_starts(self) -> dict[Side, npt.NDArray[np.int64]]:
        """By side, [X] position of the first slot of each crossed field in a state."""
        sides: tuple[Side, ...] = ("user", "item")
        return {side: np.cumsum([0, *(c.slots for c in self.crossed(side))])[:-1] for side in sides}

    def delay(self, clicked: bool) -> int:
        """Microseconds from an impression to its known outcome."""
        return self.click_delay if clicked else self.no_click_delay

    def crossed(self, side: Side) -> tuple[Crossed, ...]:
        """Topics for the user, attributes for the item: fields of the other entity that are part of its keys."""
        return self.topics if side == "user" else self.attributes

    def counters_of(self, side: Side) -> tuple[Counter, ...]:
        """Counters of one side; :mod:`thinktwice.data.instant.values` computes them in this order."""
        if (self.user if side == "user" else self.item) is None:
            return ()
        crossed = [c.field for c in self.crossed(side)]
        windows = [w.name for w in self.windows]
        out = [Counter(f"{side}_views", side, "count")]
        out += [Counter(f"{side}_views_{w}", side, "count") for w in windows]
        out += [Counter(f"{side}_x_{field}_views", side, "count", field) for field in crossed]
        out += [Counter(f"{side}_gap", side, "seconds"), Counter(f"{side}_age", side, "seconds")]
        out += [Counter(f"{side}_rate", side, "rate")]
        kind: Kind = "residual" if side == "user" else "rate"
        out += [Counter(f"{side}_residual", side, kind)] if side == "user" else []
        out += [Counter(f"{side}_{kind}_last_{k}", side, kind) for k in self.last]
        out += [Counter(f"{side}_{kind}_{w}", side, kind) for w in windows]
        out += [Counter(f"{side}_x_{field}_{kind}", side, kind, field) for field in crossed]
        return tuple(out)


def definition_of(schema: LogSchema) -> Definition | None:
    """The counters of a schema, None when it has no ``statistics.instant``."""
    config = schema.instant
    if config is None:
        return None
    both = schema.entities.user is not None and schema.entities.item is not None

    def crossed(names: tuple[str, ...] | None, side: Side, slots: int) -> tuple[Crossed, ...]:
        fields = {f.name: f for f in schema.attributes_of(side) if f.is_category}
        chosen = (list(fields)[:2] if both else []) if names is None else names
        out = []
        for name in chosen:
            allowed = fields[name].allowed
            exact = bool(allowed) and len(allowed or ()) <= slots
            out.append(Crossed(name, len(allowed or ()) if exact else slots, allowed if exact else None))
        return tuple(out)

    return Definition(
        user=schema.key_of("user"),
        item=schema.key_of("item"),
        click_delay=config.feedback_delay.click * SECOND_US,
        no_click_delay=config.feedback_delay.no_click * SECOND_US,
        topics=crossed(config.topics, "item", config.topic_slots),
        attributes=crossed(config.attributes, "user", config.attribute_slots),
        last=config.last,
        windows=tuple(Window(name, *WINDOWS[name]) for name in config.windows),
    )


def counter_names(schema: LogSchema) -> tuple[str, ...]:
    """Names of the counters of a schema in the order of their values; empty without ``statistics.instant``."""
    definition = definition_of(schema)
    return () if definition is None else definition.names
