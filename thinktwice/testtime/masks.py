"""What the base pass of a row sees: everything, a gated mixture, or only the values with enough support.

A mask [B, N] float32 keeps a field at 1, replaces it by its mask vector at 0 and mixes both in between. None keeps all.
"""

from __future__ import annotations

import math

import numpy as np

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.reliability import Reliability


def base_mask(config: TestTimeConfig, reliability: Reliability, ids: np.ndarray) -> np.ndarray | None:
    """The mask of the base pass of rows ids [B, C], or None when nothing is touched."""
    if config.mode == "gate" and config.strength > 0:
        return reliability.of(ids, config.strength).astype(np.float32)
    if config.mode in ("filter", "uttsi") and config.min_count > 0:
        return filter_mask(reliability, ids, config.min_count, config.min_kept)
    return None


def filter_mask(reliability: Reliability, ids: np.ndarray, min_count: int, min_kept: float) -> np.ndarray:
    """1 where the value was seen at least ``min_count`` times, else 0; the most reliable fields come back first until the
    share ``min_kept`` of all N fields is kept."""
    r = reliability.of(ids)
    columns = len(reliability.num_values)
    keep = np.ones(r.shape, bool)
    keep[:, :columns] = reliability.counts_of(ids) >= min_count
    keep[:, reliability.protected] = True
    needed = math.ceil(min_kept * r.shape[1])
    for row in np.flatnonzero(keep.sum(axis=1) < needed):
        order = np.argsort(-np.where(keep[row], 2.0, r[row]), kind="stable")
        keep[row, order[:needed]] = True
    return keep.astype(np.float32)
