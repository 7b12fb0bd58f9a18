"""What a predictor asks of an online feature store, whichever it is, and what it makes of the answer.

A :class:`FeatureSource` fetches raw values from one store; a reader turns them into the :class:`Features` of a request. Whether
a row is unknown or out of date is told by its values and timestamps, never by a status: Redis calls a row that does not
exist PRESENT.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from thinktwice.data.sides import Side
from thinktwice.errors import FeatureStoreError

Entity = Literal["user", "item"]
OnDefault = Callable[[Entity, str], None]  # told whose values were defaulted, and why, in one word


@dataclass(frozen=True)
class FeatureRow:
    """One row of a store: values by field name, None where it has none; ``newest`` is the latest timestamp over the
    views of the row in Unix seconds, NaN when the store did not tell one."""

    values: Mapping[str, Any]
    newest: float = math.nan

    @property
    def cold(self) -> bool:
        """The store knows nothing about it."""
        return all(value is None for value in self.values.values())


class FeatureSource(Protocol):
    """Fetches rows from one store."""

    def names(self, entity: Entity) -> tuple[str, ...]:
        """Fields it has for users or for items."""
        ...

    def fetch(self, entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
        """One row per id, in order.

        Args:
            timeout: seconds it may take; a source that cannot bound itself ignores it.

        Raises:
            FeatureStoreError: the store does not answer, or not in time.
        """
        ...

    def close(self) -> None:
        """Give connections back."""
        ...


class BoundedSource(FeatureSource, Protocol):
    """A source that may be able to keep a time limit by itself."""

    def fetch_within(self, entity: Entity, ids: Sequence[str], timeout: float) -> list[FeatureRow] | None:
        """Like :meth:`fetch`, but back in time by itself, so that no other thread is needed; None when that cannot be promised.

        Raises:
            TimeoutError: the store has not answered after ``timeout`` seconds.
        """
        ...


@dataclass(frozen=True)
class Features:
    """Looked-up values of one request.

    Attributes:
        user: values of the user's fields.
        items: values of the items' fields, one per candidate in the order of the request.
        cold_user, cold_items: the store knows nothing about them.
        stale_user, stale_items: their newest value is older than allowed.
        defaulted: entities whose lookup failed or came too late: what was looked up has no values.
        encoded_items: the item side encoded already, one row per candidate; None when the reader does not encode.
    """

    user: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    cold_user: bool
    cold_items: tuple[bool, ...]
    stale_user: bool
    stale_items: tuple[bool, ...]
    defaulted: tuple[Entity, ...] = ()
    encoded_items: Side | None = None


class OnlineFeatureReader(Protocol):
    """Reads the features of one request."""

    def read(self, user_id: str | None, item_ids: Sequence[str], timeout: float | None = None) -> Features:
        """Features of one user and of some items (ids may repeat).

        Args:
            timeout: seconds that the caller can wait; what is late then is defaulted.

        Raises:
            FeatureStoreError: the store does not answer, and the reader has nobody to tell about defaults.
        """
        ...

    def close(self) -> None:
        """Stop what runs in the background and give connections back."""
        ...


class Lookup:
    """One entity of a source, with defaults for what it does not give.

    Args:
        source: the store.
        max_age: seconds after which a value is stale; None for never.
        on_default: told of every lookup that was answered with defaults; None lets errors through.
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

    def user(self, user_id: str | None, timeout: float | None) -> tuple[FeatureRow, bool]:
        """The row of a user, and whether it is a default."""
        rows, defaulted = self.rows("user", [] if user_id is None else [user_id], timeout)
        return (rows[0] if rows else FeatureRow({})), defaulted

    def cold(self, entity: Entity, found: FeatureRow) -> bool:
        """Whether the store knows nothing about the row; without fields there is nothing to know."""
        return bool(self.source.names(entity)) and found.cold

    @property
    def ages(self) -> bool:
        """Whether anything can be stale."""
        return self._max_age is not None

    def stale(self, newest: float) -> bool:
        """Whether a newest timestamp is too old. A row without one is not called stale."""
        return self._max_age is not None and self._clock() - newest > self._max_age


class DirectReader:
    """Asks the source for every request: one fetch for the user, one for all distinct items."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def read(self, user_id: str | None, item_ids: Sequence[str], timeout: float | None = None) -> Features:
        """See :class:`OnlineFeatureReader`."""
        end = None if timeout is None else time.monotonic() + timeout
        user, user_defaulted = self._lookup.user(user_id, timeout)
        unique = list(dict.fromkeys(item_ids))
        left = None if end is None else max(0.0, end - time.monotonic())
        rows, items_defaulted = self._lookup.rows("item", unique, left)
        by_id = dict(zip(unique, rows, strict=True))
        found = [by_id[item] for item in item_ids]
        return Features(
            user=user.values,
            items=[row.values for row in found],
            cold_user=user_id is not None and not user_defaulted and self._lookup.cold("user", user),
            cold_items=tuple(not items_defaulted and self._lookup.cold("item", row) for row in found),
            stale_user=self._lookup.stale(user.newest),
            stale_items=tuple(self._lookup.stale(row.newest) for row in found),
            defaulted=defaulted(user_defaulted, items_defaulted),
        )

    def close(self) -> None:
        """See :class:`OnlineFeatureReader`."""
        self._lookup.source.close()


def defaulted(user: bool, items: bool) -> tuple[Entity, ...]:
    """The entities whose values are defaults."""
    return (*(("user",) if user else ()), *(("item",) if items else ()))
