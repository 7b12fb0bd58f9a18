"""Only rows that may still cross the cut of the top k: with k places to fill, the order elsewhere decides nothing.

A second opinion moves a logit by about s = s0 + s1 missing + s2 entropy (fitted offline); a row is asked again when
[z - 2 s, z + 2 s] holds the k-th best score of its request. Judged by NDCG@k and top-k regret, not by AUC.
"""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.triggers.seen import Marked, Seen

REACH = 2.0


def mark(config: TestTimeConfig, seen: Seen) -> Marked:
    k, rows = seen.top_k or config.top_k, len(seen.logit)
    if k >= rows:
        return Marked(np.full(rows, -np.inf), np.zeros(rows, bool))
    cut = np.partition(seen.logit, rows - k)[rows - k]
    s0, s1, s2 = config.spread
    spread = np.maximum(s0 + s1 * seen.missing + s2 * seen.bits, 0.0)
    signal = REACH * spread - np.abs(seen.logit - cut)
    return Marked(signal, (signal >= 0) & (spread > 0))
