"""How often a value had been seen when a training row was written: what makes training novelty look like test novelty.

Shapes: R rows, C categorical-or-numeric fields in model order; index 0 of a field is unknown and was never seen.
"""

from __future__ import annotations

import numpy as np

from thinktwice.data.encoded import count_values, table_offsets


def time_blocks(time: np.ndarray, blocks: int) -> np.ndarray:
    """Block number 0..blocks-1 of every row [R]: equal shares of rows in time order, rows of one instant together."""
    edges = np.sort(time)[(np.arange(1, blocks) * len(time)) // blocks]
    return np.searchsorted(edges, time, side="right").astype(np.int64)


def counts_before(ids: np.ndarray, block: np.ndarray, num_values: tuple[int, ...], blocks: int) -> np.ndarray:
    """Rows that held each value in strictly earlier blocks: int64 [blocks, sum(num_values)]; unknown counts as 0.

    Right for logs in time order: a value met for the first time in its block of time was unknown to every model trained
    before, however often it comes in the block itself.

    Args:
        ids: values of the rows [R, C].
        block: block number of every row [R], of :func:`time_blocks`.
        num_values: values per field, unknown included.
        blocks: how many blocks there are.
    """
    parts = []
    for column, size in enumerate(num_values):
        flat = np.bincount(block * size + ids[:, column], minlength=blocks * size).reshape(blocks, size)
        flat[:, 0] = 0
        parts.append(np.cumsum(flat, axis=0) - flat)
    return np.concatenate(parts, axis=1)


def counts_without(ids: np.ndarray, num_values: tuple[int, ...]) -> np.ndarray:
    """Other rows that hold the value of a row: int64 [R, C], leave-one-out; unknown counts as 0.

    Right where time is unknown, or train and test are drawn alike. In a log in time order it makes new values look well
    known, because the rows of a new user come in one session and count one another.
    """
    others = count_values(ids, num_values).astype(np.int64)[ids + table_offsets(num_values)] - 1
    return np.maximum(others, 0)  # unknown counts as 0 with its own row, too
