from __future__ import annotations

import numpy as np

from thinktwice.data.history import counts_before, counts_without, time_blocks


def test_blocks_are_equal_shares_in_time_and_keep_instants_together() -> None:
    time = np.random.default_rng(0).permutation(1000).astype(np.int64)
    block = time_blocks(time, 10)
    assert np.bincount(block).tolist() == [100] * 10
    assert (np.diff(block[np.argsort(time)]) >= 0).all()
    same = time_blocks(np.repeat([5, 6], 500).astype(np.int64), 10)
    assert len(set(same[:500])) == 1
    assert len(set(same[500:])) == 1


def test_counts_are_of_strictly_earlier_blocks() -> None:
    ids = np.array([[1], [1], [2], [1], [0], [2]], np.int32)
    block = np.array([0, 0, 1, 1, 1, 2])
    counts = counts_before(ids, block, (3,), 3)
    assert counts.tolist() == [[0, 0, 0], [0, 2, 0], [0, 3, 1]]


def test_a_row_does_not_count_itself_and_unknown_counts_nothing() -> None:
    ids = np.array([[1, 0], [1, 2], [2, 2], [1, 0], [0, 1], [0, 2]], np.int32)
    assert counts_without(ids, (3, 3)).tolist() == [[2, 0], [2, 2], [0, 2], [2, 0], [0, 0], [0, 2]]


def test_in_one_session_a_new_value_looks_known_only_to_leave_one_out() -> None:
    ids = np.array([[1]] * 8 + [[2]] * 4, np.int32)
    block = time_blocks(np.arange(12), 3)
    before = counts_before(ids, block, (3,), 3)[block, ids[:, 0]]
    assert before[8:].tolist() == [0, 0, 0, 0]
    assert counts_without(ids, (3,))[8:, 0].tolist() == [3, 3, 3, 3]
