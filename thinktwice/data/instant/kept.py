"""Counters of stored states, kept between requests.

The bytes of a state rarely change between two requests, and its counters depend on the instant only by the bucket of their windows and
by the seconds since its latest outcomes. So the counters of a state are computed once per bucket and kept by the bytes of the state;
a request computes the seconds. A source that knows which states have not changed says so by their versions (:class:`Marks`): their
counters are kept by slot, and no state is looked at. The bits are those of :func:`thinktwice.data.instant.state.values`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from thinktwice.data.instant.columns import from_bytes
from thinktwice.data.instant.definition import Definition, Side
from thinktwice.data.instant.state import slot_values, state_type
from thinktwice.data.instant.values import Ints, elapsed_float32

Floats = npt.NDArray[np.float32]

MAX_BYTES = {"user": 16 << 20, "item": 64 << 20}  # of the kept states of a side, about
ENTRY_BYTES = 200  # of one kept state, beside its bytes and counters
WHOLE = 64  # numbers of all slots that are read as a whole, which takes less time than to find some of them
NEVER_EVALUATED = np.iinfo(np.int64).min  # a bucket of no instant


@dataclass(frozen=True, eq=False)
class Marks:
    """Marks [n] of states: equal versions mean equal states; ``slots`` are small numbers, the same for the states of one key."""

    slots: Ints
    versions: Ints

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, rows: Sequence[int]) -> Marks:
        """The marks at ``rows``, repeats included."""
        return Marks(self.slots.take(rows), self.versions.take(rows))


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
        self,
        user: bytes | None,
        items: Sequence[bytes | None],
        instant: int,
        topics: Ints,
        attributes: Sequence[int],
        marks: Marks | None = None,
    ) -> Floats:
        """Like :func:`thinktwice.data.instant.state.values`, from stored states; None is an empty state.

        Args:
            marks: of the items, all from one source; None if it does not mark them.

        Raises:
            FeatureStoreError: a state is of another definition.
        """
        out = np.empty((len(items), len(self.definition.names)), np.float32)
        if (user_side := self._user) is None:
            assert self._item is not None
            self._put_items(self._item, out, *self._item.rows(items, instant, attributes, marks), instant, None)
            return out
        row, of_slot, at = user_side.row(user, instant)
        first, rest = out[:, : user_side.width], out[:, user_side.width :]
        if (side := self._item) is not None:
            counters, of_slots, times = side.rows(items, instant, attributes, marks)
            row[user_side.seconds] += self._put_items(side, rest, counters, of_slots, times, instant, at)
        else:
            row[user_side.seconds] += elapsed_float32(instant - at[None])[0]
        first[:] = row
        if user_side.crossed:
            place = topics.reshape(len(items), user_side.crossed) + user_side.offsets
            first[:, user_side.views], first[:, user_side.sums] = of_slot.take(place, axis=1)
        return out

    @staticmethod
    def _put_items(
        side: _Side, out: Floats, counters: Floats, of_slots: Floats, times: Ints, instant: int, at: Ints | None
    ) -> Floats:
        """Write the counters of items to ``out`` [n, C]. Returns the counters of seconds [2] of the user's times ``at`` [2]."""
        out[:] = counters
        if side.crossed:
            out[:, side.views], out[:, side.sums] = of_slots[:, : side.crossed], of_slots[:, side.crossed :]
        # In one call, whose steps take a microsecond each whatever the number of rows.
        seconds = elapsed_float32(instant - (times if at is None else np.concatenate([times, at[None]])))
        for column in range(2):  # both at once take longer
            counter = out[:, side.seconds.start + column]
            np.add(counter, seconds[: len(out), column], out=counter)
        return seconds[-1]


class _Side:
    """Kept states of users or items. Of each, the counters, unknown for the crossed fields; and in a table of its own, because a request
    reads few of them, the outcomes in every slot of the crossed fields, then the rates or residuals in every slot. Before the first
    slot of each field is an unknown one, for the slot -1.

    Attributes:
        width, crossed: number of counters, and of crossed fields.
        slots: number of slots of all crossed fields, with the unknown ones.
        offsets: [crossed] what is added to the slots of each crossed field to get columns of outcomes.
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
        self.offsets = 1 + np.arange(self.crossed) + definition.slot_starts[side]
        self._starts = tuple(self.offsets.tolist())
        # Columns of the counters for every slot, the last of which is unknown, in the order of what is kept.
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
        self._by_content = _Table(self._capacity, self.width, 2 * self.slots)
        self._by_slot = _Table(self._capacity, self.width, 2 * self.slots)
        self._versions = np.zeros(self._capacity, np.int64)  # of what _by_slot keeps; 0 for nothing
        self._places: dict[bytes | None, int] = {}
        self._contents: list[bytes | None] = []  # by place; the oldest one is replaced
        self._next = 0
        self._lock = threading.Lock()

    def row(self, content: bytes | None, instant: int) -> tuple[Floats, Floats, Ints]:
        """Like :meth:`rows` of one state: its counters [width], what is kept for all slots [2, slots], and its times [2]."""
        bucket = instant // self._bucket_us
        with self._lock:
            table, place = self._by_content, self._places.get(content, -1)
            if place < 0 or table.buckets[place] != bucket:
                counters, of_slots, times = self._evaluated([content], instant, bucket)
                return counters[0], of_slots[0].reshape(2, -1), times[0]
            found = table.counters[place].copy(), table.of_slots[place].copy(), table.times[place].copy()
        return found[0], found[1].reshape(2, -1), found[2]

    def rows(
        self, contents: Sequence[bytes | None], instant: int, slots: Sequence[int], marks: Marks | None
    ) -> tuple[Floats, Floats, Ints]:
        """Of states [n] at an instant: their counters [n, width], those of seconds 0; the outcomes in these ``slots`` of the crossed
        fields, then their rates or residuals [n, 2 * crossed]; and when the latest impression was seen and the latest outcome
        known [n, 2]."""
        bucket = instant // self._bucket_us
        columns = [slot + start for slot, start in zip(slots, self._starts, strict=True)]
        chosen = np.array([*columns, *(column + self.slots for column in columns)], np.int64)
        with self._lock:
            if marks is None:
                table = self._by_content
                places = np.fromiter(map(self._places.get, contents, repeat(-1)), np.int64, len(contents))
                current = table.buckets.take(places) == bucket
            else:
                table, places = self._by_slot, marks.slots % self._capacity
                current = table.buckets.take(places) == bucket
                current &= self._versions.take(places) == marks.versions
            counters, times = table.counters.take(places, axis=0), table.times.take(places, axis=0)
            of_slots = table.chosen(places, chosen)
            if np.count_nonzero(current) < len(places):
                at = np.flatnonzero(~current)
                evaluated = self._evaluated([contents[n] for n in at.tolist()], instant, bucket, marks is None)
                counters[at], of_slots[at], times[at] = evaluated[0], evaluated[1].take(chosen, axis=1), evaluated[2]
                if marks is not None:
                    table.put(places[at], bucket, *evaluated)
                    self._versions[places[at]] = marks.versions.take(at)
        return counters, of_slots, times

    def _evaluated(
        self, contents: list[bytes | None], instant: int, bucket: int, keep: bool = True
    ) -> tuple[Floats, Floats, Ints]:
        """The counters of states, what is kept for all slots, and their times; kept by content if ``keep``."""
        unique = {content: n for n, content in enumerate(dict.fromkeys(contents))}
        states = from_bytes(self._definition, self._side, list(unique), self._header)
        values = slot_values(self._definition, self._side, states, instant)
        unknown = np.full((len(states), 1), np.nan, np.float32)
        rows = np.concatenate([values, unknown], axis=1).take(self._columns, axis=1)
        counters, of_slots = rows[:, : self.width], rows[:, self.width :]
        times = np.empty((len(states), 2), np.int64)
        times[:, 0], times[:, 1] = states["seen_at"], states["known_at"]
        if keep:
            places = [self._place_of(content) for content in unique]
            # One place as a number: an assignment to a list of one takes three times as long.
            self._by_content.put(places if len(places) > 1 else places[0], bucket, counters, of_slots, times)
        if len(contents) == 1:
            return counters, of_slots, times
        of_request = [unique[content] for content in contents]
        return counters[of_request], of_slots[of_request], times[of_request]

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


class _Table:
    """Evaluated states: the bucket in which each was evaluated, its counters, what is kept for all slots, and its times. The last row,
    which the place -1 selects, is never up to date. Memory is taken when a row is first written."""

    def __init__(self, rows: int, counters: int, of_slots: int) -> None:
        self.buckets = np.full(rows + 1, NEVER_EVALUATED)
        self.counters = np.zeros((rows + 1, counters), np.float32)
        self.of_slots = np.zeros((rows + 1, of_slots), np.float32)
        self.times = np.zeros((rows + 1, 2), np.int64)

    def chosen(self, places: Ints, columns: Ints) -> Floats:
        """These columns of what is kept for all slots."""
        width = self.of_slots.shape[1]
        if width <= WHOLE:
            return self.of_slots.take(places, axis=0).take(columns, axis=1)
        return self.of_slots.take(places[:, None] * width + columns)

    def put(
        self, places: Sequence[int] | Ints | int, bucket: int, counters: Floats, of_slots: Floats, times: Ints
    ) -> None:
        self.buckets[places], self.counters[places] = bucket, counters
        self.of_slots[places], self.times[places] = of_slots, times
