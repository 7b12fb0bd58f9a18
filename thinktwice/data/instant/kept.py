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
        rest, times, parts = out, [], []  # parts: the counters of seconds, which are 0 or unknown
        if (side := self._user) is not None:
            (row,), at = side.rows([user], instant)
            first, rest = out[:, : side.width], out[:, side.width :]
            first[:] = row[: side.width]
            if side.crossed:
                place = np.asarray(topics, np.int64).reshape(len(items), side.crossed) + side.offsets
                first[:, side.views] = row.take(place)
                place += side.slots
                first[:, side.sums] = row.take(place)
            times.append(at)
            parts.append(first[:, side.seconds])
        if (side := self._item) is not None:
            rows, at = side.rows(items, instant)
            rest[:] = rows[:, : side.width]
            for column, slot in enumerate(attributes):
                place = slot + side.starts[column]
                rest[:, side.views.start + column] = rows[:, place]
                rest[:, side.sums.start + column] = rows[:, place + side.slots]
            times.append(at)
            parts.append(rest[:, side.seconds])
        # In one call, whose steps take a microsecond each whatever the number of rows.
        seconds, start = elapsed(instant - np.concatenate(times)).astype(np.float32), 0
        for part, at in zip(parts, times, strict=True):
            for column in range(2):  # both at once take longer
                counter = part[:, column]
                np.add(counter, seconds[start : start + len(at), column], out=counter)
            start += len(at)
        return out


class _Side:
    """Kept states of users or items. A kept row has the counters of a side, unknown for the crossed fields; then the outcomes in every
    slot of the crossed fields, and the rates or residuals in every slot. Before the first slot of each field is an unknown one,
    for the slot -1.

    Attributes:
        width, crossed: number of counters, and of crossed fields.
        slots: number of slots of all crossed fields, with the unknown ones.
        starts: what is added to the slots of each crossed field to get columns of outcomes; ``offsets`` [crossed] as an array.
        views, sums, seconds: slices of the counters of crossed fields, and of those of seconds.
    """

    def __init__(self, definition: Definition, side: Side, header: bytes, capacity: int | None) -> None:
        self._definition, self._side, self._header = definition, side, header
        self.crossed = len(definition.crossed(side))
        self.width = len(definition.counters_of(side))
        crossed = definition.crossed(side)
        slots = sum(c.slots for c in crossed)
        seen = 1 + len(definition.windows)
        self.views, self.sums = slice(seen, seen + self.crossed), slice(self.width - self.crossed, self.width)
        self.seconds = slice(seen + self.crossed, seen + self.crossed + 2)
        self.slots = slots + self.crossed
        self.offsets = self.width + 1 + np.arange(self.crossed) + definition.slot_starts[side]
        self.starts = tuple(self.offsets.tolist())
        # Columns of the counters for every slot, the last of which is unknown, in the order of a kept row.
        unknown = self.width - 2 * self.crossed + 2 * slots
        none = np.full(self.crossed, unknown)
        self._columns = np.concatenate(
            [
                *(np.arange(seen), none, np.arange(seen + slots, unknown - slots), none),
                *(
                    [unknown, *(first + start + np.arange(c.slots))]
                    for first in (seen, unknown - slots)
                    for c, start in zip(crossed, definition.slot_starts[side], strict=True)
                ),
            ]
        ).astype(np.int64)
        self._bucket_us = math.gcd(*(w.width for w in definition.windows)) or 1 << 62
        size = state_type(definition, side).itemsize + len(header) + 4 * len(self._columns) + ENTRY_BYTES
        self._capacity = capacity or max(1, MAX_BYTES[side] // size)
        # The last row, which the place -1 selects, is never up to date.
        self._rows = np.empty((self._capacity + 1, len(self._columns)), np.float32)
        self._instants = np.empty((self._capacity + 1, 3), np.int64)  # evaluated bucket, seen_at, known_at
        self._instants[-1] = NEVER_EVALUATED
        self._places: dict[bytes | None, int] = {}
        self._contents: list[bytes | None] = []  # by place; the oldest one is replaced
        self._next = 0
        self._lock = threading.Lock()

    def rows(self, contents: Sequence[bytes | None], instant: int) -> tuple[Floats, Ints]:
        """Kept rows [n] of states at an instant, their counters of seconds 0, and when the latest impression was seen and the latest
        outcome known [n, 2]."""
        bucket = instant // self._bucket_us
        with self._lock:
            places = np.fromiter(map(self._places.get, contents, repeat(-1)), np.int64, len(contents))
            out, instants = self._rows.take(places, axis=0), self._instants.take(places, axis=0)
            current = instants[:, 0] == bucket
            if np.count_nonzero(current) < len(contents):
                self._evaluate(contents, instant, bucket, np.flatnonzero(~current), out, instants)
        return out, instants[:, 1:]

    def _evaluate(
        self, contents: Sequence[bytes | None], instant: int, bucket: int, at: Ints, out: Floats, instants: Ints
    ) -> None:
        """Evaluate the states of the rows ``at`` of a request, and keep them."""
        contents = [contents[n] for n in at.tolist()]
        unique = {content: n for n, content in enumerate(dict.fromkeys(contents))}
        states = from_bytes(self._definition, self._side, list(unique), self._header)
        counters = slot_values(self._definition, self._side, states, instant)
        unknown = np.full((len(states), 1), np.nan, np.float32)
        rows = np.concatenate([counters, unknown], axis=1).take(self._columns, axis=1)
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
