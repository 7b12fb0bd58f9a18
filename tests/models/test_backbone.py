"""The backbone contract, for every architecture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.synthetic import FIELDS, random_batch
from thinktwice.data.encoded import Batch
from thinktwice.models import BACKBONES, Backbone, backbone_config, build_backbone

NAMES = sorted(BACKBONES)


def model_of(name: str, seed: int = 0) -> Backbone:
    return build_backbone(backbone_config(name=name, dim=4, hidden=(8, 6), init_sd=0.5), FIELDS, seed=seed).eval()


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(1, 9), paths=st.integers(1, 4), seed=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_full_masks_equal_the_plain_model(name: str, rows: int, paths: int, seed: int) -> None:
    model, batch = model_of(name, seed), random_batch(rows, seed)
    with torch.inference_mode():
        plain = model(batch)
        x = model.embed(batch)
        one = model.score(x, torch.ones(rows, 1, FIELDS.num_fields))
        many = model.score(x, torch.ones(rows, paths, FIELDS.num_fields))
        unmasked = model.score(x)
    assert x.shape == (rows, FIELDS.num_fields, 5)
    assert torch.equal(one[:, 0], plain)
    assert torch.equal(unmasked[:, 0], plain)
    torch.testing.assert_close(many, plain[:, None].expand(rows, paths), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_empty_masks_forget_the_row(name: str) -> None:
    model, batch = model_of(name), random_batch(7)
    with torch.inference_mode():
        scores = model.score(model.embed(batch), torch.zeros(7, 2, FIELDS.num_fields))
        nothing = model.score(model.fill()[None])
    torch.testing.assert_close(scores, nothing.expand(7, 2), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_forgets_exactly_its_field(name: str) -> None:
    model, batch = model_of(name), random_batch(50)
    mask = torch.ones(50, 1, FIELDS.num_fields)
    mask[:, :, 0] = 0
    other = Batch(batch.ids.clone(), batch.sequences, batch.vectors)
    other.ids[:, 0] = batch.ids.flip(0)[:, 0]
    with torch.inference_mode():
        assert torch.equal(model.score(model.embed(batch), mask), model.score(model.embed(other), mask))
        assert not torch.equal(model(batch), model(other))
        unknown = Batch(batch.ids.clone(), batch.sequences, batch.vectors)
        unknown.ids[:, 0] = 0
        torch.testing.assert_close(model.score(model.embed(batch), mask)[:, 0], model(unknown), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_fraction_mixes_row_and_fill(name: str) -> None:
    model, batch = model_of(name), random_batch(6)
    gate = torch.rand(6, 1, FIELDS.num_fields, generator=torch.Generator().manual_seed(1))
    fill = torch.randn(6, FIELDS.num_fields, 5, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        x = model.embed(batch)
        gated = model.score(x, gate, fill)
        mixed = gate[:, 0, :, None] * x + (1 - gate[:, 0, :, None]) * fill
        torch.testing.assert_close(gated, model.score(mixed), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_each_other(name: str) -> None:
    model, batch = model_of(name), random_batch(33)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(batch.select(order)), model(batch)[order], atol=1e-6, rtol=1e-6)


def test_missing_sequences_and_vectors_use_their_learned_vectors() -> None:
    model = model_of("deepfm")
    batch = random_batch(4)
    batch = Batch(
        batch.ids,
        {"history": torch.zeros(4, 5, dtype=torch.int64)},
        {"image": torch.full((4, 3), torch.nan)},
    )
    x = model.embed(batch)
    assert torch.equal(x[:, 4:], model.embedding.extra_fill.expand(4, 2, 5))
    x.sum().backward()
    assert bool((model.embedding.extra_fill.grad == 4).all())


def test_sequences_are_means_over_the_items_table_without_padding() -> None:
    model = model_of("deepfm")
    batch = random_batch(1)
    history = torch.tensor([[3, 7, 0, 0, 0]])
    x = model.embed(Batch(batch.ids, {"history": history}, batch.vectors))
    offset = FIELDS.offsets[1]
    torch.testing.assert_close(x[0, 4], (model.embedding.table[offset + 3] + model.embedding.table[offset + 7]) / 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_gated_table_masks_values_as_a_mask_does(name: str) -> None:
    model, batch = model_of(name), random_batch(40)
    keep = torch.rand(FIELDS.num_rows, generator=torch.Generator().manual_seed(3))
    keep[::3], keep[1::3] = 0.0, 1.0
    for column, first in enumerate(FIELDS.offsets):
        if model.protected[column]:  # as for every test-time method
            keep[first : first + FIELDS.num_values[column]] = 1.0
    mask = torch.ones(40, 1, FIELDS.num_fields)
    mask[:, 0, :4] = keep[batch.ids + model.embedding.offsets]
    table = model.embedding.gated(keep)
    assert not table.requires_grad
    assert torch.equal(model.embedding.gated(torch.ones(FIELDS.num_rows)), model.embedding.table)
    with torch.inference_mode():
        x, gated = model.embed(batch), model.embed(batch, table)
        torch.testing.assert_close(model.score(gated), model.score(x, mask), atol=1e-6, rtol=1e-6)
        assert torch.equal(gated[:, 4:], x[:, 4:])  # sequences and vectors do not read what may be masked
        assert not torch.equal(gated[:, :4], x[:, :4])


@pytest.mark.parametrize("name", NAMES)
def test_ids_beyond_float_precision_keep_their_row(name: str) -> None:
    """2^24 + 1 is no float32: an id that passes through floats would hit its neighbour's row."""
    model = model_of(name)
    seen: list[torch.Tensor] = []
    original = model.embedding.rows

    def spy(joint: torch.Tensor) -> torch.Tensor:
        seen.append(joint)
        return original(joint % FIELDS.num_rows)

    model.embedding.rows = spy  # type: ignore[method-assign]
    batch = random_batch(2)
    big = 2**24 + 1
    ids = torch.full_like(batch.ids, big)
    model.embed(Batch(ids, batch.sequences, batch.vectors))
    assert seen[0].dtype == torch.int64
    assert torch.equal(seen[0] - model.embedding.offsets, ids)


def test_seeds_decide_the_weights_and_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = model_of("dcnv2", 1), model_of("dcnv2", 1), model_of("dcnv2", 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.embedding.table, again.embedding.table)
    assert not torch.equal(first.embedding.table, other.embedding.table)
