"""Evidence of a request: its counters, and the outcomes of its user, which are read when a second look needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.features.counters import Trouble
from thinktwice.data.evidence import Evidence, History
from thinktwice.errors import FeatureStoreError

HistoryRead = Literal["", "read", "late", "failed"]


class RequestEvidence:
    """Evidence of one request.

    Args:
        counters: what became of the counters.
        values: [rows, C] counters; None if all are unknown.
        history: reads the outcomes of the user; None if no second look needs them.

    Attributes:
        history_read: what became of reading the outcomes; "" if no row needed them.
    """

    def __init__(
        self,
        counters: Trouble | Literal["used", "late"],
        values: npt.NDArray[np.float32] | None = None,
        history: Callable[[], History] | None = None,
    ) -> None:
        self.counters, self.values, self._history = counters, values, history
        self.history_read: HistoryRead = ""

    @property
    def for_engine(self) -> Evidence | None:
        """What the engine gets; None if all counters are unknown."""
        if self.values is None:
            return None
        return Evidence(self.values, None if self._history is None else self._read)

    def _read(self) -> History | None:
        assert self._history is not None
        try:
            outcomes = self._history()
        except FeatureStoreError as error:
            self.history_read = "late" if getattr(error, "reason", "") == "timeout" else "failed"
            return None
        self.history_read = "read"
        return outcomes
