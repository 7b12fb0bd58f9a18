"""Counts of earlier occurrences of the values of training rows, so that novelty in training resembles novelty in test.

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
    """Number of rows with each value in strictly earlier blocks: int64 [blocks, sum(num_values)]; unknown counts as 0.

    For logs in time order: a value that first occurs in a block was unknown to every model trained before, however often it
    occurs in the block.

    Args:
        ids: values of the rows [R, C].
        block: block number of every row [R], from :func:`time_blocks`.
        num_values: values per field, unknown included.
        blocks: number of blocks.
    """
    parts = []
    for column, size in enumerate(num_values):
        flat = np.bincount(block * size + ids[:, column], minlength=blocks * size).reshape(blocks, size)
        flat[:, 0] = 0
        parts.append(np.cumsum(flat, axis=0) - flat)
    return np.concatenate(parts, axis=1)


def counts_without(ids: np.ndarray, num_values: tuple[int, ...]) -> np.ndarray:
    """Number of other rows with the value of a row: int64 [R, C], leave-one-out; 0 for unknown.

    For logs without time, or with a random split. In a log in time order it makes new values look well known, because the
    rows of a new user come in one session and count one another.
    """
    remaining = count_values(ids, num_values).astype(np.int64)[ids + table_offsets(num_values)] - 1
    return np.maximum(remaining, 0)  # unknown counts as 0, so minus its own row it would be -1
