"""In-memory snapshot of all items of the catalogue, encoded in advance: the item side of a request is an index lookup.

The snapshot is filled by batch reads of the feature store and refilled in the background, so the store remains the only source. If a
refill fails, the previous snapshot stays; likewise if many items have lost their features, because an emptied store says nothing
about items. Items that are not in the snapshot are fetched on request.

A refill works in small slices with longer pauses, to leave the interpreter to requests.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from serving.features.lookup import FeatureRow, Features, FeatureSource, Lookup, Places, States, defaulted, in_order
from serving.telemetry.state import Trouble
from thinktwice.data.encoder import Encoder
from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.keys import slots_of
from thinktwice.data.sides import Side
from thinktwice.errors import FeatureStoreError

CHUNK = 2_000  # items per read of the first fill, and per table of values
PIECE = 50  # items per slice of a refill: one or two milliseconds
PAUSE_RATIO = 3.0  # pause after a slice, relative to its duration
LOST_SHARE, LOST_FEW = (
    0.1,
    10,
)  # share and number of items that may lose their features in one refill; more means an emptied store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ItemSnapshot:
    """Items at one point in time, in columns.

    Attributes:
        positions: id -> row.
        side: the encoded items, one row per item.
        values: values from the store, in tables of CHUNK rows.
        newest: [n] Unix seconds, NaN if unknown.
        cold: [n] bool.
        topics: [n, T] slots of the items' topics; T is 0 if no counters are read.
    """

    positions: Mapping[str, int]
    side: Side
    values: tuple[pa.Table, ...]
    newest: np.ndarray
    cold: np.ndarray
    topics: np.ndarray
    filled: float  # Unix seconds

    def row(self, position: int) -> dict[str, Any]:
        """The values of one item."""
        item: dict[str, Any] = self.values[position // CHUNK].slice(position % CHUNK, 1).to_pylist()[0]
        return item


class _Rows(Sequence[Mapping[str, Any]]):
    """Values of the candidates of one request, read on access."""

    def __init__(self, snapshot: ItemSnapshot, positions: np.ndarray, missed: Mapping[int, Mapping[str, Any]]) -> None:
        self._snapshot, self._positions, self._missed = snapshot, positions, missed

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index % len(self) if -len(self) <= index < 0 else index
        if position in self._missed:
            return self._missed[position]
        return self._snapshot.row(int(self._positions[position]))


class SnapshotReader:
    """Reads items from the snapshot, and the user's row and unknown items from the source.

    Args:
        lookup: the source, its time limit and its defaults.
        fill: the same source without a time limit, for batch reads.
        item_ids: returns the ids of the catalogue, called at every refill.
        encoder: of the model.
        item_key: column of the item id.
        refresh: seconds between refills.
        first_limit: maximum seconds of the first fill, which delays the start; the remaining items follow in the background.
        counters: definition of the counters whose states are read with each request; None reads no states.
    """

    def __init__(
        self,
        lookup: Lookup,
        fill: Lookup,
        item_ids: Callable[[], Sequence[str]],
        encoder: Encoder,
        item_key: str,
        *,
        refresh: float = 300.0,
        first_limit: float = 20.0,
        counters: Definition | None = None,
    ) -> None:
        self._reads_states, self._topics = counters is not None, () if counters is None else counters.topics
        self._lookup, self._fill, self._item_ids = lookup, fill, item_ids
        self._encoder, self._key = encoder, item_key
        self._names = [f.name for f in encoder.fields if f.entity == "item"]
        self._refresh = refresh
        self.failures = 0
        self.lost = 0  # items that lost their features in the store; the old ones are still served
        self._failing = Trouble(
            logger, "the item snapshot is filled again, after {seconds} s and {times} refills that failed", calm=0.0
        )
        self._emptied = Trouble(logger, "the store has the features of the items again, after {seconds} s", calm=0.0)
        self._stop = threading.Event()
        self._snapshot, complete = self._filled(time.monotonic() + first_limit, gently=False)
        self._look_for_features(self._snapshot)
        self._thread = threading.Thread(target=self._keep_fresh, args=(complete,), name="snapshot", daemon=True)
        self._thread.start()

    @property
    def filled(self) -> float:
        """Time at which the snapshot was filled, Unix seconds."""
        return self._snapshot.filled

    def __len__(self) -> int:
        return len(self._snapshot.positions)

    @property
    def source(self) -> FeatureSource:
        """See :class:`serving.features.lookup.OnlineFeatureReader`."""
        return self._lookup.source

    def read(self, user_id: str | None, item_ids: Sequence[str], timeout: float | None = None) -> Features:
        """See :class:`serving.features.lookup.OnlineFeatureReader`."""
        end = None if timeout is None else time.monotonic() + timeout
        snapshot = self._snapshot  # the same one for the whole request, even if it is replaced meanwhile
        positions = np.fromiter(map(snapshot.positions.get, item_ids, repeat(-1)), np.int64, len(item_ids))
        is_absent = positions < 0
        absent = np.flatnonzero(is_absent).tolist() if np.count_nonzero(is_absent) else []
        unknown = list(dict.fromkeys(item_ids[i] for i in absent)) if absent else []
        states: States | None = None
        rows: list[FeatureRow] = []
        items_defaulted = False
        if self._reads_states:
            unique = item_ids if len(set(item_ids)) == len(item_ids) else list(dict.fromkeys(item_ids))
            places = Places(snapshot.positions, positions) if unique is item_ids else None
            fetched, failed = self._lookup.request(user_id, unique, unknown, timeout, places)
            user, rows, states = fetched.user, fetched.items, in_order(fetched.states, unique, item_ids)
            user_defaulted, items_defaulted = "user" in failed, "item" in failed
        else:
            user, user_defaulted = self._lookup.user(user_id, timeout)
            if unknown:
                remaining = None if end is None else max(0.0, end - time.monotonic())
                rows, items_defaulted = self._lookup.rows("item", unknown, remaining)
        side = snapshot.side.take(positions)
        cold, newest = snapshot.cold.take(positions), snapshot.newest.take(positions) if self._lookup.ages else None
        topics = snapshot.topics.take(positions, axis=0) if self._reads_states else None
        missed: dict[int, Mapping[str, Any]] = {}
        if absent:
            by_id = dict(zip(unknown, rows, strict=True))
            _put(
                side,
                np.array(absent),
                self._encode([item_ids[i] for i in absent], [by_id[item_ids[i]] for i in absent]),
            )
            for i in absent:
                row = by_id[item_ids[i]]
                missed[i] = row.values
                cold[i] = not items_defaulted and self._lookup.cold("item", row)
                if newest is not None:
                    newest[i] = row.newest
                if topics is not None:
                    topics[i] = slots_of(self._topics, row.values)
        stale = (False,) * len(item_ids)
        if newest is not None:
            stale = tuple(self._lookup.stale(at) for at in newest.tolist())
        return Features(
            user=user.values,
            items=_Rows(snapshot, positions, missed),
            cold_user=user_id is not None and not user_defaulted and self._lookup.cold("user", user),
            cold_items=tuple(cold.tolist()),
            stale_user=self._lookup.stale(user.newest),
            stale_items=stale,
            defaulted=defaulted(user_defaulted, items_defaulted),
            encoded_items=side,
            states=states,
            topics=topics,
        )

    def refill(self) -> bool:
        """Refill the snapshot now. Returns False, and changes nothing, if the store does not respond or has lost the features of
        many items."""
        try:
            filled, complete = self._filled(math.inf, gently=True)
        except (FeatureStoreError, OSError, pa.ArrowException) as error:  # the store, or its tables of ids
            self.failures += 1
            self._failing.met(f"the item snapshot was not refilled, the one of {self._age():.0f} s ago stays: {error}")
            return False
        self._failing.not_met()
        if not complete:  # stopped meanwhile
            return False
        had, lost = _lost(self._snapshot, filled)
        if lost == had > 0 or lost > max(LOST_SHARE * had, LOST_FEW):
            self.lost = lost
            self._emptied.met(
                f"{lost} of {had} items have lost their features in the store: was it emptied? Those of "
                f"{self._age():.0f} s ago are served until it has them again, or until a restart; materialize the features"
            )
            return False
        self.lost = 0
        self._snapshot = filled
        self._look_for_features(filled)
        return True

    def _age(self) -> float:
        return time.time() - self.filled

    def _look_for_features(self, snapshot: ItemSnapshot) -> None:
        items = len(snapshot.positions)
        if not snapshot.cold[:items].all():
            self._emptied.not_met()
        elif items and self._lookup.source.names("item"):
            self._emptied.met(
                f"none of {items} items has features in the store: items are scored without until it has them; materialize the "
                "features"
            )

    def close(self) -> None:
        """See :class:`serving.features.lookup.OnlineFeatureReader`."""
        self._stop.set()
        self._thread.join(10.0)
        self._lookup.source.close()

    def _keep_fresh(self, complete: bool) -> None:
        if not complete:
            self.refill()
        while not self._stop.wait(self._refresh):
            self.refill()

    def _filled(self, until: float, *, gently: bool) -> tuple[ItemSnapshot, bool]:
        """A snapshot of the items that could be read until ``until`` (monotonic), and whether it is complete."""
        at = time.time()
        ids = list(dict.fromkeys(self._item_ids()))
        step, done = PIECE if gently else CHUNK, 0
        sides, newest, cold, topics = [], [], [], []
        positions: dict[str, int] = {}
        values: list[pa.Table] = []
        waiting: list[FeatureRow] = []  # rows for the next table
        while done < len(ids) and (done == 0 or time.monotonic() < until) and not self._stop.is_set():
            start = time.monotonic()
            batch_ids = ids[done : done + step]
            rows, _ = self._fill.rows("item", batch_ids, None)
            sides.append(self._encode(batch_ids, rows))
            newest.append(np.array([row.newest for row in rows]))
            cold.append(np.array([self._fill.cold("item", row) for row in rows]))
            topics += [slots_of(self._topics, row.values) for row in rows] if self._topics else []
            positions.update(zip(batch_ids, range(done, done + len(batch_ids)), strict=True))
            waiting += rows
            done += len(batch_ids)
            if len(waiting) == CHUNK:
                values.append(_table(waiting))
                waiting = []
            if gently:
                self._stop.wait(PAUSE_RATIO * (time.monotonic() - start))
        if waiting:
            values.append(_table(waiting))
        # One row without an item, because a take from an empty snapshot would fail; the last one, which the position -1 selects.
        nothing = self._encode([""], [FeatureRow({})])
        return (
            ItemSnapshot(
                positions=positions,
                side=Side.stacked([*sides, nothing]),
                values=tuple(values),
                newest=np.concatenate([*newest, np.zeros(1)]),
                cold=np.concatenate([*cold, np.zeros(1, bool)]),
                topics=np.array([*topics, (-1,) * len(self._topics)], np.int64)
                if self._topics
                else np.zeros((done + 1, 0), np.int64),
                filled=at,
            ),
            done == len(ids),
        )

    def _encode(self, ids: Sequence[str], rows: Sequence[FeatureRow]) -> Side:
        return self._encoder.encode_side(
            [{**row.values, self._key: item} for item, row in zip(ids, rows, strict=True)], self._names
        )


def _lost(before: ItemSnapshot, after: ItemSnapshot) -> tuple[int, int]:
    """Number of items in both snapshots that had features before, and how many of these have none after."""
    had = lost = 0
    for item, position in before.positions.items():
        if not before.cold[position] and (now := after.positions.get(item)) is not None:
            had += 1
            lost += bool(after.cold[now])
    return had, lost


def _put(side: Side, positions: np.ndarray, part: Side) -> None:
    """Replace the rows of ``side`` at ``positions`` by those of ``part``."""
    side.ids[positions] = part.ids
    for name, block in part.sequences.items():
        side.sequences[name][positions] = block
    for name, block in part.vectors.items():
        side.vectors[name][positions] = block
    for name, block in part.weights.items():
        side.weights[name][positions] = block


def _table(rows: Sequence[FeatureRow]) -> pa.Table:
    names = list(rows[0].values)
    return pa.table({name: pa.array([row.values[name] for row in rows]) for name in names})
