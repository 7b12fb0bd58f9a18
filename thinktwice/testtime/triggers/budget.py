"""A fixed share of every request, the most open scores first: the cost of a request is known before it is scored.

Which rows those are depends on the other rows of the request (not on their order).
"""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.triggers.seen import Marked, Seen


def mark(config: TestTimeConfig, seen: Seen) -> Marked:
    unsure = np.zeros(len(seen.bits), bool)
    most = int(config.share * len(seen.bits))
    unsure[np.lexsort((seen.row_hash, -seen.bits))[:most]] = True
    return Marked(seen.bits, unsure)
