from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.synthetic import FIELDS, random_rows
from thinktwice.data.encoded import Batch
from thinktwice.train.augment import Augmenter, counts_before, time_blocks
from thinktwice.train.config import Augmentation, FinetuneConfig


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
    out = augment(rows.batch(slice(1000, 1200)), torch.arange(1000, 1200), torch.Generator().manual_seed(0))
    assert bool((out.ids[:, 0] == 0).all())


def test_masking_spares_protected_fields_early_blocks_and_most_of_a_row() -> None:
    rows = random_rows(4000)
    augment = Augmenter("mask_block", rows, FIELDS, FinetuneConfig(unknown_share=0.0, masked_rows=1.0, kappa=1e6))
    batch = rows.batch(slice(None))
    out = augment(batch, torch.arange(4000), torch.Generator().manual_seed(0))
    masked = (out.ids == 0) & (batch.ids != 0)
    assert not bool(masked[:, 3].any())  # price is protected
    assert torch.equal(out.sequences["history"], batch.sequences["history"])
    assert torch.equal(missing(out)[:, 4:], missing(batch)[:, 4:])
    assert not bool(masked[:1200].any())  # the first three of ten blocks
    assert int(masked.sum(dim=1).max()) == 1  # at most 30 % of six fields
    assert bool(masked[1200:].any(dim=1).all())
    assert bool((batch.ids == torch.from_numpy(rows.ids)).all())  # the input is left alone


def missing(batch: Batch) -> torch.Tensor:
    """Which fields [B, N] a batch does not know."""
    extra = [(batch.sequences["history"] == 0).all(dim=1), batch.vectors["image"].isnan().any(dim=1)]
    return torch.cat([batch.ids == 0, torch.stack(extra, dim=1)], dim=1)


@pytest.mark.parametrize("kind", ["none", "mask_block"])
def test_every_field_and_whole_users_and_items_come_unknown(kind: Augmentation) -> None:
    """Protected fields too: a new user or item has none of its attributes and statistics."""
    rows = random_rows(40_000)
    rows.vectors["image"][:] = 1.0
    rows.sequences["history"][:, 0] = 1
    batch = rows.batch(slice(None))
    assert not bool(missing(batch).any())
    augment = Augmenter(kind, rows, FIELDS, FinetuneConfig(unknown_share=0.1, masked_rows=1e-9))
    hidden = missing(augment(batch, torch.arange(len(rows)), torch.Generator().manual_seed(0)))
    assert bool(((hidden.float().mean(dim=0) - (1 - 0.9**2)).abs() < 0.01).all())  # alone or with the entity
    user = torch.tensor([entity == "user" for entity in FIELDS.entities])
    for entity in (user, ~user):
        whole = hidden[:, entity].all(dim=1) & (hidden & ~entity).sum(dim=1).eq(0)
        assert 0.04 < float(whole.float().mean()) < 0.1


def test_without_a_share_nothing_is_hidden() -> None:
    rows = random_rows(500)
    batch = rows.batch(slice(None))
    out = Augmenter("none", rows, FIELDS, FinetuneConfig(unknown_share=0.0))(
        batch, torch.arange(500), torch.Generator().manual_seed(0)
    )
    assert torch.equal(out.ids, batch.ids)
    assert torch.equal(missing(out), missing(batch))
