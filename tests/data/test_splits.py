"""Splits: shares, ties, seeds, and independence of the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from thinktwice.data.row_ids import row_ids
from thinktwice.data.splits import PARTS, SplitSpec, assign_split


def ids(rows: int) -> np.ndarray:
    return np.array(row_ids("test", np.arange(rows)).to_pylist())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=20, max_size=200))
def test_a_time_split_never_cuts_through_an_instant(times: list[int]) -> None:
    time = np.array(times)
    codes = assign_split(time, ids(len(time)), SplitSpec())
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        if (codes == earlier).any() and (codes == later).any():
            assert time[codes == earlier].max() < time[codes == later].min()


def test_a_time_split_has_its_shares() -> None:
    time = np.random.default_rng(0).permutation(1_000_209)
    sizes = np.bincount(assign_split(time, np.zeros(0), SplitSpec()), minlength=len(PARTS))
    assert np.abs(sizes - [800_168, 100_021, 100_020]).max() <= 2


def test_a_random_split_follows_ids_and_seed_alone() -> None:
    names, time = ids(20_000), np.zeros(20_000)
    spec = SplitSpec(kind="random", valid=0.2, test=0.1, seed=3)
    codes = assign_split(time, names, spec)
    assert np.abs(np.bincount(codes) / 20_000 - [0.7, 0.2, 0.1]).max() < 0.01
    order = np.random.default_rng(1).permutation(20_000)
    assert (assign_split(time, names[order], spec) == codes[order]).all()
    assert (assign_split(time[:100], names[:100], spec) == codes[:100]).all()
    other = assign_split(time, names, SplitSpec(kind="random", valid=0.2, test=0.1, seed=4))
    assert 0.4 < (other == codes).mean() < 0.65  # as often equal as chance makes it: 0.54


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SplitSpec(valid=0.5, test=0.5)


def test_shares_below_one_row_leave_the_last_instant_to_test() -> None:
    times = np.arange(10, dtype=np.int64)
    ids = np.array(row_ids("parquet", np.arange(10)).to_pylist())
    parts = assign_split(times, ids, SplitSpec(kind="time", valid=0.05, test=0.05))
    assert parts.tolist() == [0] * 9 + [2]
