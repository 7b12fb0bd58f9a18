"""Counters of a request: the states pushed by the feedback service, read and converted to the values used in training.

The states of a store are complete up to its *watermark*, which the service advances every second. If the watermark is older than the
maximum age, all counters are unknown, a case that models see in training; a key without a state has no outcome yet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thinktwice.data.instant.columns import from_bytes
from thinktwice.data.instant.definition import Definition, definition_of
from thinktwice.data.instant.keys import slots_of
from thinktwice.data.instant.state import State, empty_states, values
from thinktwice.data.pushed_views import LOG_COLUMN, STATE, WATERMARK
from thinktwice.errors import FeatureStoreError
from thinktwice.schema import LogSchema

LOOK_AGAIN = 0.5  # seconds after which the watermark is read again


class StateSource(Protocol):
    """Reads fields of the online store directly, without the feature service."""

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


class CounterReader:
    """Reads counters for one schema.

    Args:
        source: the online store.
        schema: of the model.
        max_age: maximum seconds between the watermark and the instant of a request; None: no limit.
        clock: monotonic seconds.

    Attributes:
        counts: requests ``read``, and of these ``stale`` (the watermark was older than ``max_age``), ``without_watermark`` (nothing was
            ever pushed) and ``failed`` (the store did not respond). In these three cases all counters are unknown.

    Raises:
        FeatureStoreError: the schema has no ``statistics.instant``.
    """

    def __init__(
        self,
        source: StateSource,
        schema: LogSchema,
        max_age: float | None = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        definition = definition_of(schema)
        if definition is None:
            raise FeatureStoreError(
                f"the schema {schema.name} has no statistics.instant: there are no counters to read"
            )
        self.definition: Definition = definition
        self._source, self._name, self._clock = source, schema.name, clock
        self._max_age = None if max_age is None else round(max_age * 1e6)
        self._watermark: int | None = None
        self._read_at = -1e9
        self.counts: Counter[str] = Counter()

    def read(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        instant: int,
        user: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
    ) -> npt.NDArray[np.float32]:
        """Counters of n candidates, float32 [n, C] in the order of ``definition.names``; NaN is unknown.

        Args:
            instant: time of the request, UTC microseconds.
            user: values of the user, with the attributes.
            items: values of each item, with the topics.
        """
        self.counts["read"] += 1
        unknown = np.full((len(item_ids), len(self.definition.names)), np.nan, np.float32)
        try:
            if trouble := self._trouble(instant):
                self.counts[trouble] += 1
                return unknown
            return self._counters(user_id, item_ids, instant, user, items)
        except FeatureStoreError:
            self.counts["failed"] += 1
            return unknown

    def _trouble(self, instant: int) -> str:
        now = self._clock()
        if now - self._read_at >= LOOK_AGAIN:
            row = self._source.fetch_fields(LOG_COLUMN, [("log_instant", WATERMARK)], [self._name])[0]
            self._watermark, self._read_at = (None if row[0] is None else int(row[0])), now
        if self._watermark is None:
            return "without_watermark"
        return "stale" if self._max_age is not None and instant - self._watermark > self._max_age else ""

    def _counters(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        instant: int,
        user: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
    ) -> npt.NDArray[np.float32]:
        definition = self.definition
        user_state: State | None = None
        if definition.user is not None and user_id is not None:
            content = self._source.fetch_fields(definition.user, [("user_instant", STATE)], [user_id])[0][0]
            user_state = None if content is None else from_bytes(definition, "user", [content])
        if definition.item is not None:
            unique = list(dict.fromkeys(item_ids))
            rows = self._source.fetch_fields(definition.item, [("item_instant", STATE)], unique) if unique else []
            states = from_bytes(definition, "item", [row[0] for row in rows])
            index = {item: n for n, item in enumerate(unique)}
            item_states = states[[index[item] for item in item_ids]]
        else:
            item_states = empty_states(definition, "item", len(item_ids))
        topics = np.array([slots_of(definition.topics, values) for values in items], np.int64).reshape(
            len(items), len(definition.topics)
        )
        return values(
            definition, user_state, item_states, instant, topics, np.array(slots_of(definition.attributes, user))
        )
