"""Evidence of rows: their counters, and the outcomes of their users, which are read on demand.

Shapes: B rows, C counters, K outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinktwice.errors import DataError

Rows = slice | npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class History:
    """Known outcomes of the users of B rows.

    items [K] int32: positions of the items in the vocabulary of the item key, 0 for an unknown item; clicked [K] bool;
    start, end [B] int32: row r sees the outcomes ``start[r] : end[r]``, oldest first; of_one_user: all rows see the same ones (if it is
    False, they still may).
    """

    items: npt.NDArray[np.int32]
    clicked: npt.NDArray[np.bool_]
    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    of_one_user: bool = False

    @staticmethod
    def of_user(items: npt.NDArray[np.int32], clicked: npt.NDArray[np.bool_], rows: int) -> History:
        """The outcomes of one user, oldest first, shared by all ``rows`` rows of a request."""
        return History(items, clicked, np.zeros(rows, np.int32), np.full(rows, len(items), np.int32), True)

    def take(self, rows: Rows) -> History:
        """The outcomes of the rows at ``rows``."""
        if self.of_one_user and not isinstance(rows, slice):
            rows = slice(0, len(rows))  # all ranges are the same one
        return History(self.items, self.clicked, self.start[rows], self.end[rows], self.of_one_user)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Counters and outcome histories of B rows.

    Attributes:
        counters: [B, C] float32 instant statistics, NaN for unknown.
        history: returns the outcomes of the rows' users, or None if they cannot be read in time. It is called at most once
            per request, and only if a row needs it.
    """

    counters: npt.NDArray[np.float32]
    history: Callable[[], History | None] | None = None

    def __len__(self) -> int:
        return len(self.counters)

    def take(self, rows: Rows) -> Evidence:
        """The evidence of the rows at ``rows``. Reading its history raises a DataError if the number of rows differs."""
        return Evidence(self.counters[rows], None if self.history is None else lambda: self.history_of(rows))

    def history_of(self, rows: Rows) -> History | None:
        """Read the outcomes of the rows at ``rows``; None if they cannot be read in time.

        Raises:
            DataError: the history is of another number of rows.
        """
        value = None if self.history is None else self.history()
        if value is not None and not len(value.start) == len(value.end) == len(self):
            raise DataError(
                f"a history of {len(value.start)} rows was read for a request of {len(self)}: give one range of outcomes per row"
            )
        return None if value is None else value.take(rows)
