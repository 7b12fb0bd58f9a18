"""Counters of a request: the states pushed by the feedback service, converted to the values used in training.

The states of a store are complete up to its *watermark*, which the service advances every second. If the watermark is older than the
maximum age, all counters are unknown, a case that models see in training; a key without a state has no outcome yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving.features.lookup import FeatureSource, KeptItems, States
from thinktwice.data.encoder import Encoder
from thinktwice.data.evidence import History
from thinktwice.data.instant.columns import from_bytes
from thinktwice.data.instant.definition import Definition, definition_of
from thinktwice.data.instant.kept import KeptCounters
from thinktwice.data.instant.keys import key_hash, slots_of
from thinktwice.data.instant.state import NEVER
from thinktwice.data.pushed_views import STATE, instant_views
from thinktwice.errors import FeatureStoreError
from thinktwice.schema import LogSchema

#: Why the counters of a request are unknown: the watermark is older than allowed, nothing was ever pushed, the store did not
#: respond, or its states cannot be read.
Trouble = Literal["stale", "without_watermark", "failed", "unreadable"]
SECOND_US = 1_000_000


@dataclass(frozen=True)
class Counters:
    """Counters of n candidates.

    Attributes:
        values: float32 [n, C] in the order of ``Definition.names``; NaN is unknown.
        trouble: why all of them are unknown; None if they were read.
    """

    values: npt.NDArray[np.float32]
    trouble: Trouble | None = None


class CounterReader:
    """Converts the states of a request to counters, and reads histories.

    Args:
        schema: of the model.
        max_age: maximum seconds between the watermark and the instant of a request; None: no limit.

    Raises:
        FeatureStoreError: the schema has no ``statistics.instant``.
    """

    def __init__(self, schema: LogSchema, max_age: float | None = 60.0) -> None:
        definition = definition_of(schema)
        if definition is None:
            raise FeatureStoreError(
                f"the schema {schema.name} has no statistics.instant, so there are no counters to read: add it to the schema, and train again"
            )
        self.definition: Definition = definition
        self._max_age_us = None if max_age is None else max_age * SECOND_US
        self._kept = KeptCounters(definition)

    def read(
        self,
        states: States | None,
        rows: int,
        instant: int,
        user: Mapping[str, Any],
        topics: npt.NDArray[np.int64],
    ) -> Counters:
        """Counters of n = ``rows`` candidates.

        Args:
            states: as read with the request; None if the store did not respond.
            instant: time of the request, UTC microseconds.
            user: values of the user, with the attributes.
            topics: [n, T] slots of the candidates' topics.
        """
        trouble = self._trouble(states, instant)
        if trouble is None:
            assert states is not None
            try:
                return Counters(self._values(states, instant, user, topics))
            except FeatureStoreError:
                trouble = "unreadable"
        return Counters(np.full((rows, len(self.definition.names)), np.nan, np.float32), trouble)

    def topics_of(self, items: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.int64]:
        """[n, T] slots of the topics of n items, from their values."""
        slots = [slots_of(self.definition.topics, item) for item in items]
        return np.array(slots, np.int64).reshape(len(items), len(self.definition.topics))

    def _trouble(self, states: States | None, instant: int) -> Trouble | None:
        if states is None:
            return "failed"
        if states.watermark is None:
            return "without_watermark"
        return "stale" if self._max_age_us is not None and instant - states.watermark > self._max_age_us else None

    def _values(
        self, states: States, instant: int, user: Mapping[str, Any], topics: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        if self._kept.header != states.header:
            self._kept = KeptCounters(self.definition, states.header)
        attributes = slots_of(self.definition.attributes, user)
        items, marks = states.items, states.items.marks if isinstance(states.items, KeptItems) else None
        return self._kept.values(states.user, items, instant, topics, attributes, marks)


class HistoryReader:
    """Reads the latest outcomes of a user, as positions in the vocabulary of the item key.

    Args:
        source: the online store.
        schema, encoder: of the model.
    """

    def __init__(self, source: FeatureSource, schema: LogSchema, encoder: Encoder) -> None:
        definition, item = definition_of(schema), schema.key_of("item")
        view = next((view for view in instant_views(schema) if view.kind == "recent"), None)
        if definition is None or item is None or view is None:
            raise FeatureStoreError(
                f"the schema {schema.name} has no outcomes of users, so there is no history to read: add statistics.instant to the schema, and train again"
            )
        self._definition, self._source, self._view, self._key = definition, source, view.name, view.key
        items = encoder.values_of(item)
        hashes = np.array([key_hash(value) for value in items], np.uint64).view(np.int64)
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._positions = np.array([encoder.index_of(item, value) for value in items], np.int32)[order]

    def read(self, user_id: str | None, instant: int, rows: int, timeout: float | None = None) -> History:
        """The outcomes of a user that were known before an instant, oldest first, for the rows of a request.

        Raises:
            FeatureStoreError: the store does not respond in time, or the state is of another definition.
        """
        content: list[bytes | None] = [None]
        if user_id is not None:
            (content,) = self._source.fetch_fields(self._key, [(self._view, STATE)], [user_id], timeout)
        state = from_bytes(self._definition, "recent", content)[0]
        known = (state["at"] != NEVER) & (state["at"] < instant)
        return History.of_user(self._position(state["item"][known]), state["clicked"][known] > 0, rows)

    def _position(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Vocabulary positions of items, 0 for unknown ones."""
        if len(self._hashes) == 0:
            return np.zeros(len(hashes), np.int32)
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where(self._hashes[place] == hashes, self._positions[place], np.int32(0))
