"""What a filtered base pass sees of a row: the values with enough support."""

from __future__ import annotations

import math

import numpy as np

from thinktwice.testtime.reliability import Reliability


def filter_mask(
    reliability: Reliability, ids: np.ndarray, r: np.ndarray, min_count: int, min_kept: float
) -> np.ndarray:
    """bool [B, N]: whether the value of ids [B, C] was seen at least ``min_count`` times; the best supported fields (r [B, N])
    come back first until the share ``min_kept`` of all N fields is kept."""
    columns = len(reliability.num_values)
    keep = np.ones(r.shape, bool)
    keep[:, :columns] = reliability.counts_of(ids) >= min_count
    keep[:, reliability.protected] = True
    needed = math.ceil(min_kept * r.shape[1])
    short = np.flatnonzero(keep.sum(axis=1) < needed)
    if len(short):
        some = keep[short]
        order = np.argsort(-np.where(some, 2.0, r[short]), axis=1, kind="stable")
        np.put_along_axis(some, order[:, :needed], True, axis=1)
        keep[short] = some
    return keep
