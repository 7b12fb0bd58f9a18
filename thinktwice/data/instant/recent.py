"""The latest outcomes of every user as of every row of a log, as ranges of one list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thinktwice.data.instant.definition import RECENT, Definition
from thinktwice.data.instant.log_counters import LogRows, id_hashes
from thinktwice.data.instant.ranks import Codes, key_positions


@dataclass(frozen=True)
class RecentOutcomes:
    """Row r sees the outcomes of the rows ``outcomes[start[r] : end[r]]``, oldest first, at most :data:`RECENT`.

    outcomes [up to R]: rows of the log, those of one user contiguous, in the order in which they are known; start, end [R].
    Outcomes without an item are left out; rows without a user have none. All int32.
    """

    outcomes: Codes
    start: Codes
    end: Codes


def recent_outcomes(rows: LogRows, definition: Definition) -> RecentOutcomes:
    """The user's latest outcomes known strictly before each row: the content of a ``recent`` state at that instant.

    Of outcomes known at one instant, those of the item with the higher hash (as a signed number) are later, then clicks.
    """
    at = rows.known_at(definition)
    if not len(rows.users) or not len(rows.items):
        nothing = np.zeros(len(rows), np.int32)
        return RecentOutcomes(np.zeros(0, np.int32), nothing, nothing)
    hashes = id_hashes(rows.items, rows.item_ids, len(rows)).view(np.int64)
    order = np.lexsort((rows.clicked, hashes, at)).astype(np.int32)
    before = np.searchsorted(at[order], rows.time, side="left").astype(np.int32)
    bits = max(len(rows).bit_length(), 1)
    known = np.where(rows.items < 0, np.int32(-1), rows.users)
    ranks, start, (end,) = key_positions(rows.users, known[order], bits, (before,))
    return RecentOutcomes(order[ranks], np.maximum(start, end - RECENT), end)
