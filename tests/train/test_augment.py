from __future__ import annotations

import numpy as np
import torch

from tests.models.synthetic import FIELDS, random_rows
from thinktwice.train.augment import Augmenter, counts_before, time_blocks
from thinktwice.train.config import FinetuneConfig


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


def test_a_value_new_in_its_block_is_always_masked_in_chosen_rows() -> None:
    """A user whose rows all fall into one block counts 0 there, although leave-one-out would count hundreds."""
    rows = random_rows(2000)
    rows.ids[:, 0] = 1
    rows.ids[1000:1200, 0] = 2  # all of user 2 within block 5
    config = FinetuneConfig(unknown_share=0.0, masked_rows=1.0)
    augment = Augmenter("mask_block", rows, FIELDS, config)
    index = torch.arange(1000, 1200)
    ids = torch.from_numpy(rows.ids[1000:1200].astype(np.int64))
    out = augment(ids, index, torch.Generator().manual_seed(0))
    assert bool((out[:, 0] == 0).all())


def test_masking_spares_protected_fields_early_blocks_and_most_of_a_row() -> None:
    rows = random_rows(4000)
    augment = Augmenter("mask_block", rows, FIELDS, FinetuneConfig(unknown_share=0.0, masked_rows=1.0, kappa=1e6))
    index = torch.arange(4000)
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    out = augment(ids, index, torch.Generator().manual_seed(0))
    masked = (out == 0) & (ids != 0)
    assert not bool(masked[:, 3].any())  # price is protected
    assert not bool(masked[:1200].any())  # the first three of ten blocks
    assert int(masked.sum(dim=1).max()) == 1  # at most 30 % of six fields
    assert bool(masked[1200:].any(dim=1).all())
    assert bool((ids == torch.from_numpy(rows.ids)).all())  # the input is left alone


def test_unknown_share_of_the_plain_variant() -> None:
    rows = random_rows(20_000)
    augment = Augmenter("none", rows, FIELDS, FinetuneConfig(unknown_share=0.1))
    ids = torch.from_numpy(rows.ids.astype(np.int64))
    out = augment(ids, torch.arange(len(rows)), torch.Generator().manual_seed(0))
    share = ((out == 0) & (ids != 0)).float().mean(dim=0)
    assert share[3] == 0
    assert bool(((share[:3] - 0.1).abs() < 0.01).all())
