"""Counters of stored states, kept between requests.

The bytes of a state rarely change between two requests, and its counters depend on the instant only by the bucket of their windows and
by the seconds since its latest outcomes. So the counters of a state are computed once per bucket and kept by the bytes of the state;
a request computes the seconds. The bits are those of :func:`thinktwice.data.instant.state.values`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from thinktwice.data.instant.columns import from_bytes
from thinktwice.data.instant.definition import Definition, Side
from thinktwice.data.instant.state import slot_values, state_type
from thinktwice.data.instant.values import Ints, elapsed

Floats = npt.NDArray[np.float32]

MAX_BYTES = {"user": 16 << 20, "item": 64 << 20}  # of the kept states of a side, about
ENTRY_BYTES = 200  # of one kept state, beside its bytes and counters
NEVER_EVALUATED = np.iinfo(np.int64).min  # a bucket of no instant


class KeptCounters:
    """Counters of the candidates of requests. Thread-safe.

    Args:
        definition: of the counters.
        header: bytes that precede the state of each item.
        capacity: maximum number of kept states of each side; None: as many as :data:`MAX_BYTES` allows.
    """

    def __init__(self, definition: Definition, header: bytes = b"", capacity: int | None = None) -> None:
        self.definition, self.header = definition, header
        self._user = None if definition.user is None else _Side(definition, "user", b"", capacity)
        self._item = None if definition.item is None else _Side(definition, "item", header, capacity)

    def values(
        self, user: bytes | None, items: Sequence[bytes | None], instant: int, topics: Ints, attributes: Sequence[int]
    ) -> Floats:
        """Like :func:`thinktwice.data.instant.state.values`, from stored states; None is an empty state.

        Raises:
            FeatureStoreError: a state is of another definition.
        """
        out = np.empty((len(items), len(self.definition.names)), np.float32)
        rest = out
        if (side := self._user) is not None:
            row = side.rows([user], instant)[0]
            first, rest = out[:, : side.width], out[:, side.width :]
            first[:] = row[side.columns]
            if side.crossed:
                slots = side.slot_columns(np.asarray(topics, np.int64).reshape(len(items), side.crossed))
                first[:, side.views], first[:, side.sums] = row[slots], row[slots + side.views_to_sums(slots)]
        if (side := self._item) is not None:
            columns = side.columns
            if side.crossed:
                columns = columns.copy()
                slots = side.slot_columns(np.asarray(attributes, np.int64))
                columns[side.views], columns[side.sums] = slots, slots + side.views_to_sums(slots)
            rest[:] = side.rows(items, instant).take(columns, axis=1)
        return out


class _Side:
    """Kept states of users or items. A kept row has the counters of :func:`slot_values`, and one more column that is unknown.

    Attributes:
        width, crossed: number of counters, and of crossed fields.
        columns: [width] column of each counter in a kept row; of a crossed field, the unknown one.
        views, sums: slices of the counters of crossed fields.
    """

    def __init__(self, definition: Definition, side: Side, header: bytes, capacity: int | None) -> None:
        self._definition, self._side, self._header = definition, side, header
        self.crossed = len(definition.crossed(side))
        self.width = len(definition.counters_of(side))
        self._starts = definition.slot_starts[side]
        slots = sum(c.slots for c in definition.crossed(side))
        seen = 1 + len(definition.windows)
        self.views, self.sums = slice(seen, seen + self.crossed), slice(self.width - self.crossed, self.width)
        self._unknown = self.width - 2 * self.crossed + 2 * slots  # the last column
        self._first_slot, self._to_sums = seen, self._unknown - slots - seen
        self._seconds = slice(seen + slots, seen + slots + 2)
        between = np.arange(seen + slots, self._unknown - slots)
        none = np.full(self.crossed, self._unknown)
        self.columns = np.concatenate([np.arange(seen), none, between, none])
        self._bucket_us = math.gcd(*(w.width for w in definition.windows)) or 1 << 62
        size = state_type(definition, side).itemsize + len(header) + 4 * (self._unknown + 1) + ENTRY_BYTES
        self._capacity = capacity or max(1, MAX_BYTES[side] // size)
        # The last row, which the place -1 selects, is never up to date.
        self._rows = np.empty((self._capacity + 1, self._unknown + 1), np.float32)
        self._instants = np.empty((self._capacity + 1, 3), np.int64)  # evaluated bucket, seen_at, known_at
        self._instants[-1] = NEVER_EVALUATED
        self._places: dict[bytes | None, int] = {}
        self._contents: list[bytes | None] = []  # by place; the oldest one is replaced
        self._next = 0
        self._lock = threading.Lock()

    def slot_columns(self, slots: Ints) -> Ints:
        """Columns of the outcomes in slots [..., X] of the crossed fields; the unknown one for -1."""
        columns = slots + (self._starts + self._first_slot)
        return np.where(slots < 0, self._unknown, columns) if slots.min(initial=0) < 0 else columns

    def views_to_sums(self, columns: Ints) -> Ints:
        """Distances from the columns of outcomes in slots to those of rates or residuals."""
        return np.where(columns == self._unknown, 0, self._to_sums)

    def rows(self, contents: Sequence[bytes | None], instant: int) -> Floats:
        """Kept rows [n] of states at an instant, with their seconds."""
        bucket = instant // self._bucket_us
        with self._lock:
            places = np.fromiter(map(self._places.get, contents, repeat(-1)), np.int64, len(contents))
            out, instants = self._rows.take(places, axis=0), self._instants.take(places, axis=0)
            old = np.flatnonzero(instants[:, 0] != bucket)
            if len(old):
                self._evaluate([contents[n] for n in old.tolist()], instant, bucket, old, out, instants)
        out[:, self._seconds] += elapsed(instant - instants[:, 1:])  # 0, or unknown, before
        return out

    def _evaluate(
        self, contents: Sequence[bytes | None], instant: int, bucket: int, at: Ints, out: Floats, instants: Ints
    ) -> None:
        """Evaluate the states of the rows ``at`` of a request, and keep them."""
        unique = {content: n for n, content in enumerate(dict.fromkeys(contents))}
        states = from_bytes(self._definition, self._side, list(unique), self._header)
        rows = np.full((len(states), self._unknown + 1), np.nan, np.float32)
        rows[:, :-1] = slot_values(self._definition, self._side, states, instant)
        times = np.empty((len(states), 3), np.int64)
        times[:, 0], times[:, 1], times[:, 2] = bucket, states["seen_at"], states["known_at"]
        of_request = [unique[content] for content in contents]
        out[at], instants[at] = rows[of_request], times[of_request]
        places = [self._place_of(content) for content in unique]
        self._rows[places], self._instants[places] = rows, times

    def _place_of(self, content: bytes | None) -> int:
        """The place of a state, which may have been that of the state kept longest."""
        place = self._places.get(content)
        if place is None:
            place, self._next = self._next, (self._next + 1) % self._capacity
            if place < len(self._contents):
                del self._places[self._contents[place]]
                self._contents[place] = content
            else:
                self._contents.append(content)
            self._places[content] = place
        return place
