"""Interface between the predictor and an online feature store.

A :class:`FeatureSource` fetches raw values from one store; a reader turns them into the :class:`Features` of a request. Whether
a row is unknown or stale is derived from its values and timestamps, never from a status: Redis reports a missing row as PRESENT.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from thinktwice.data.instant.kept import Marks
from thinktwice.data.sides import Side
from thinktwice.errors import FeatureStoreError

Entity = Literal["user", "item"]
OnDefault = Callable[[Entity, str], None]  # called with the entity whose values were defaulted, and the reason


@dataclass(frozen=True)
class FeatureRow:
    """One row of a store.

    Attributes:
        values: values by field name, None if the store has none.
        newest: latest timestamp of the row's views in Unix seconds, NaN if unknown.
    """

    values: Mapping[str, Any]
    newest: float = math.nan

    @property
    def cold(self) -> bool:
        """Whether the store has no values for it."""
        return all(value is None for value in self.values.values())


@dataclass(frozen=True, eq=False)
class Places:
    """Where the n items of a request are in a catalogue.

    Attributes:
        catalogue: id -> place, not changed as long as the object exists.
        index: [n] places, -1 for an item that the catalogue lacks.
    """

    catalogue: Mapping[str, int]
    index: npt.NDArray[np.int64]


class KeptItems(Sequence[bytes | None]):
    """States of items that a source keeps, read on access: a state that was replaced meanwhile is newer than its version says.

    Attributes:
        marks: slot and version of each.
    """

    def __init__(self, values: list[bytes | None], marks: Marks) -> None:
        self._values, self.marks = values, marks

    def __len__(self) -> int:
        return len(self.marks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._values[slot] for slot in self.marks.slots[index].tolist()]
        return self._values[self.marks.slots[index]]

    def take(self, rows: Sequence[int]) -> KeptItems:
        """The states at ``rows``, repeats included."""
        return KeptItems(self._values, self.marks.take(rows))


@dataclass(frozen=True)
class States:
    """Stored states of counters, undecoded; None where the store has none.

    Attributes:
        user: of the user.
        items: of the items, in the order of the request.
        watermark: instant up to which the states are complete, UTC microseconds; None if nothing was ever pushed.
        header: bytes before the state of each item.
    """

    user: bytes | None
    items: Sequence[bytes | None]
    watermark: int | None
    header: bytes = b""


@dataclass(frozen=True)
class Fetched:
    """Everything that the store has for a request: the user's row, the rows of some items, and the states of counters."""

    user: FeatureRow
    items: list[FeatureRow]
    states: States | None


class FeatureSource(Protocol):
    """Fetches rows from one store."""

    def names(self, entity: Entity) -> tuple[str, ...]:
        """Names of the fields of users or items."""
        ...

    def fetch(self, entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
        """Fetch one row per id, in order.

        Args:
            timeout: maximum seconds; ignored by a source without a time limit of its own.

        Raises:
            FeatureStoreError: the store does not respond, or not in time.
        """
        ...

    def fetch_request(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float | None = None,
        places: Places | None = None,
    ) -> Fetched:
        """Fetch what a request needs at once: the user's row, the rows of the items ``feature_ids``, and the states of the user
        and of the items ``item_ids``. No id may be repeated.

        Args:
            timeout: maximum seconds.
            places: of the items ``item_ids`` in a catalogue, which let a source that keeps states find them faster.

        Raises:
            FeatureStoreError: the store does not respond, or not in time.
        """
        ...

    def fetch_fields(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float | None = None
    ) -> list[list[Any]]:
        """Values of (view, field) pairs of one entity for each id, None where the store has none.

        Args:
            timeout: maximum seconds; ignored by a source without a time limit of its own.

        Raises:
            FeatureStoreError: the store does not respond.
        """
        ...

    def close(self) -> None:
        """Release connections."""
        ...


class BoundedSource(FeatureSource, Protocol):
    """A source that can enforce a time limit for some lookups."""

    def fetch_within(self, entity: Entity, ids: Sequence[str], timeout: float) -> list[FeatureRow] | None:
        """Like :meth:`fetch`, but returns in time, so that no other thread is needed; None if that cannot be guaranteed.

        Raises:
            TimeoutError: the store has not responded after ``timeout`` seconds.
        """
        ...

    def fetch_request_within(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float,
        places: Places | None = None,
    ) -> Fetched | None:
        """Like :meth:`fetch_request`, with the time limit of :meth:`fetch_within`."""
        ...

    def fetch_fields_within(
        self, key: str, fields: Sequence[tuple[str, str]], ids: Sequence[str], timeout: float
    ) -> list[list[Any]] | None:
        """Like :meth:`fetch_fields`, with the time limit of :meth:`fetch_within`."""
        ...


@dataclass(frozen=True)
class Features:
    """Looked-up values of one request.

    Attributes:
        user: values of the user's fields.
        items: values of the items' fields, one per candidate in the order of the request.
        cold_user, cold_items: whether the store has no values for them.
        stale_user, stale_items: whether their newest value is older than allowed.
        defaulted: entities whose lookup failed or timed out: their looked-up values are missing.
        encoded_items: the encoded item side, one row per candidate; None if the reader does not encode.
        states: of the counters; None if they are not read, or could not be.
        topics: [n, T] slots of the items' topics (:func:`thinktwice.data.instant.keys.slots_of`); None if the reader does not
            keep them.
    """

    user: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    cold_user: bool
    cold_items: tuple[bool, ...]
    stale_user: bool
    stale_items: tuple[bool, ...]
    defaulted: tuple[Entity, ...] = ()
    encoded_items: Side | None = None
    states: States | None = None
    topics: npt.NDArray[np.int64] | None = None


class OnlineFeatureReader(Protocol):
    """Reads the features of one request."""

    @property
    def source(self) -> FeatureSource:
        """The store."""
        ...

    def read(self, user_id: str | None, item_ids: Sequence[str], timeout: float | None = None) -> Features:
        """Features of one user and several items (ids may repeat).

        Args:
            timeout: maximum seconds; values that are not available by then are defaulted.

        Raises:
            FeatureStoreError: the store does not respond, and no callback for defaults is set.
        """
        ...

    def close(self) -> None:
        """Stop background work and release connections."""
        ...


class Lookup:
    """Looks up rows in a source, with defaults for failed lookups.

    Args:
        source: the store.
        max_age: seconds after which a value is stale; None: never.
        on_default: called for every lookup that was answered with defaults; None: errors are raised.
        clock: Unix seconds.
    """

    def __init__(
        self,
        source: FeatureSource,
        max_age: float | None = None,
        on_default: OnDefault | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self._max_age, self._on_default, self._clock = max_age, on_default, clock
        self._nothing: dict[Entity, FeatureRow] = {
            e: FeatureRow(dict.fromkeys(source.names(e))) for e in ("user", "item")
        }

    def rows(self, entity: Entity, ids: Sequence[str], timeout: float | None) -> tuple[list[FeatureRow], bool]:
        """Rows of ``ids``, and whether they are defaults."""
        if not ids or not self.source.names(entity):
            return [self._nothing[entity]] * len(ids), False
        try:
            return self.source.fetch(entity, ids, timeout), False
        except FeatureStoreError as error:
            if self._on_default is None:
                raise
            self._on_default(entity, getattr(error, "reason", "error"))
            return [self._nothing[entity]] * len(ids), True

    def request(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        feature_ids: Sequence[str],
        timeout: float | None,
        places: Places | None = None,
    ) -> tuple[Fetched, tuple[Entity, ...]]:
        """What a request needs (:meth:`FeatureSource.fetch_request`), and the entities whose rows are defaults."""
        try:
            return self.source.fetch_request(user_id, item_ids, feature_ids, timeout, places), ()
        except FeatureStoreError as error:
            if self._on_default is None:
                raise
            failed = defaulted(
                user_id is not None and bool(self.source.names("user")),
                bool(feature_ids) and bool(self.source.names("item")),
            )
            for entity in failed:
                self._on_default(entity, getattr(error, "reason", "error"))
            user = FeatureRow({}) if user_id is None else self._nothing["user"]
            return Fetched(user, [self._nothing["item"]] * len(feature_ids), None), failed

    def user(self, user_id: str | None, timeout: float | None) -> tuple[FeatureRow, bool]:
        """The row of a user, and whether it is a default."""
        rows, defaulted = self.rows("user", [] if user_id is None else [user_id], timeout)
        return (rows[0] if rows else FeatureRow({})), defaulted

    def cold(self, entity: Entity, found: FeatureRow) -> bool:
        """Whether the store has no values for the row; False if the entity has no fields."""
        return bool(self.source.names(entity)) and found.cold

    @property
    def ages(self) -> bool:
        """Whether anything can be stale."""
        return self._max_age is not None

    def stale(self, newest: float) -> bool:
        """Whether the newest timestamp is too old. A row without a timestamp is not stale."""
        return self._max_age is not None and self._clock() - newest > self._max_age


class DirectReader:
    """Queries the source for every request: one fetch for the user, one for all distinct items; or one for all, with states.

    Args:
        lookup: the source, its time limit and its defaults.
        states: whether to read the states of counters.
    """

    def __init__(self, lookup: Lookup, *, states: bool = False) -> None:
        self._lookup, self._states = lookup, states

    @property
    def source(self) -> FeatureSource:
        """See :class:`OnlineFeatureReader`."""
        return self._lookup.source

    def read(self, user_id: str | None, item_ids: Sequence[str], timeout: float | None = None) -> Features:
        """See :class:`OnlineFeatureReader`."""
        end = None if timeout is None else time.monotonic() + timeout
        unique = list(dict.fromkeys(item_ids))
        states: States | None = None
        if self._states:
            fetched, failed = self._lookup.request(user_id, unique, unique, timeout)
            user, rows, states = fetched.user, fetched.items, in_order(fetched.states, unique, item_ids)
            user_defaulted, items_defaulted = "user" in failed, "item" in failed
        else:
            user, user_defaulted = self._lookup.user(user_id, timeout)
            remaining = None if end is None else max(0.0, end - time.monotonic())
            rows, items_defaulted = self._lookup.rows("item", unique, remaining)
        by_id = dict(zip(unique, rows, strict=True))
        item_rows = [by_id[item] for item in item_ids]
        return Features(
            user=user.values,
            items=[row.values for row in item_rows],
            cold_user=user_id is not None and not user_defaulted and self._lookup.cold("user", user),
            cold_items=tuple(not items_defaulted and self._lookup.cold("item", row) for row in item_rows),
            stale_user=self._lookup.stale(user.newest),
            stale_items=tuple(self._lookup.stale(row.newest) for row in item_rows),
            defaulted=defaulted(user_defaulted, items_defaulted),
            states=states,
        )

    def close(self) -> None:
        """See :class:`OnlineFeatureReader`."""
        self._lookup.source.close()


def in_order(states: States | None, unique: Sequence[str], item_ids: Sequence[str]) -> States | None:
    """States of the distinct items ``unique`` as those of the items of a request, which may be repeated."""
    if states is None or len(unique) == len(item_ids):
        return states
    place = {item: n for n, item in enumerate(unique)}
    rows, items = [place[item] for item in item_ids], states.items
    return replace(states, items=items.take(rows) if isinstance(items, KeptItems) else [items[n] for n in rows])


def defaulted(user: bool, items: bool) -> tuple[Entity, ...]:
    """Entities whose values are defaults."""
    return (*(("user",) if user else ()), *(("item",) if items else ()))
