from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.synthetic import FIELDS, random_rows
from thinktwice.data.encoded import Batch
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import Augmentation, FinetuneConfig


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


def test_without_time_the_values_of_no_other_row_go_first_and_well_known_ones_stay() -> None:
    rows = random_rows(4000)
    rows.ids[:, 0] = np.arange(4000) % 2 + 1  # two users of 2000 rows each
    rows.ids[:, 1] = np.arange(4000) % 20 + 1
    rows.ids[:, 2] = 1
    rows.ids[:40, 1] = 21 + np.arange(40) // 5  # eight items of five rows
    rows.ids[7, 1] = 29  # and one of a single row
    config = FinetuneConfig(unknown_share=0.0, masked_rows=1.0, masked_fields=0.2)  # one of six fields
    augment = Augmenter("mask_loo", rows, FIELDS, config)
    batch, index = rows.batch(slice(None)), torch.arange(4000)
    generator = torch.Generator().manual_seed(0)
    masked = torch.stack([augment(batch, index, generator).ids == 0 for _ in range(50)]).float().mean(dim=0)
    assert float(masked[7, 1]) == 1.0
    few = masked[:40, 1][torch.arange(40) != 7]
    assert float(few.mean()) == pytest.approx(1 - (4 / 24) ** 0.5, abs=0.03)
    assert float(masked[40:, 1].mean()) == pytest.approx(1 - (198 / 218) ** 0.5, abs=0.01)
    assert float(masked[40:, [0, 2]].mean()) < 0.01
    assert float(masked[:, 3].max()) == 0.0  # price is protected


def test_without_time_the_first_rows_are_masked_like_the_last() -> None:
    rows = random_rows(4000)
    config = FinetuneConfig(unknown_share=0.0, kappa=1e6)
    batch = rows.batch(slice(None))
    out = Augmenter("mask_loo", rows, FIELDS, config)(batch, torch.arange(4000), torch.Generator().manual_seed(0))
    touched = ((out.ids == 0) & (batch.ids != 0)).any(dim=1).float()
    assert float(touched[:1200].mean()) == pytest.approx(config.masked_rows, abs=0.04)
    assert float(touched[1200:].mean()) == pytest.approx(config.masked_rows, abs=0.04)


def missing(batch: Batch) -> torch.Tensor:
    """Which fields [B, N] a batch does not know."""
    extra = [(batch.sequences["history"] == 0).all(dim=1), batch.vectors["image"].isnan().any(dim=1)]
    return torch.cat([batch.ids == 0, torch.stack(extra, dim=1)], dim=1)


@pytest.mark.parametrize("kind", ["none", "mask_block", "mask_loo"])
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
