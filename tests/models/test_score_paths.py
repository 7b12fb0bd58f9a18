"""Views that replace a few fields: the incremental scores are those of the full masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.synthetic import FIELDS, random_batch
from thinktwice.models import BACKBONES, Backbone, backbone_config, build_backbone
from thinktwice.models.cost import flops
from thinktwice.models.views import Views

NAMES = sorted(BACKBONES)
N = FIELDS.num_fields


def model_of(name: str, hidden: tuple[int, ...] = (32, 16)) -> Backbone:
    """As after training: embeddings of sd 0.3, dense layers spread as they are initialised, biases that are not 0."""
    model = build_backbone(backbone_config(name=name, dim=8, hidden=hidden, init_sd=0.3), FIELDS, seed=1).eval()
    return model.requires_grad_(False)


def whole_mask(mask: Tensor, fields: Tensor) -> Tensor:
    """The mask [U, P, N] over all fields that a mask [U, P, n] over ``fields`` stands for."""
    whole = torch.ones(*mask.shape[:2], N)
    whole[:, :, fields] = mask
    return whole


@pytest.mark.parametrize("name", NAMES)
@given(
    rows=st.integers(1, 7),
    paths=st.integers(1, 5),
    fields=st.permutations(range(N)).flatmap(lambda order: st.integers(0, N).map(lambda n: order[:n])),
    fractions=st.booleans(),
    own_fill=st.booleans(),
    hidden=st.sampled_from([(), (16,), (32, 16)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_paths_equal_full_masks(
    name: str,
    rows: int,
    paths: int,
    fields: list[int],
    fractions: bool,
    own_fill: bool,
    hidden: tuple[int, ...],
    seed: int,
) -> None:
    model, generator = model_of(name, hidden), torch.Generator().manual_seed(seed)
    x = model.embed(random_batch(rows, seed))
    mask = torch.rand(rows, paths, len(fields), generator=generator)
    mask = mask if fractions else mask.round()
    fill = torch.randn(rows, N, 9, generator=generator) * 0.3 if own_fill else model.fill()
    places, before = torch.tensor(fields, dtype=torch.int64), x.clone()
    scores = model.score_paths(x, mask, fill, places)
    assert scores.shape == (rows, paths)
    torch.testing.assert_close(scores, model.score(x, whole_mask(mask, places), fill), atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_views_are_the_masked_rows(name: str) -> None:
    """What an architecture falls back on when a layer cannot be updated."""
    model, places = model_of(name), torch.tensor([4, 0, 2])
    x, fill = model.embed(random_batch(6)), model.fill()
    mask = torch.rand(6, 3, 3, generator=torch.Generator().manual_seed(0))
    views, kept = Views.of(x, mask, fill, places), whole_mask(mask, places)[..., None]
    expected = kept * x[:, None] + (1 - kept) * fill
    torch.testing.assert_close(views.whole(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(views.flat(), expected[..., :-1].flatten(2), atol=1e-6, rtol=1e-6)
    default = Backbone.trunk_paths(model, views)
    torch.testing.assert_close(default, model.trunk_paths(views), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(name: str) -> None:
    model, generator = model_of(name), torch.Generator().manual_seed(0)
    x, places = model.embed(random_batch(32)), torch.tensor([0, 1, 4])
    mask = torch.rand(32, 8, 3, generator=generator).round()
    scores = model.score_paths(x, mask, model.fill(), places)
    order = torch.randperm(32, generator=generator)
    assert torch.equal(model.score_paths(x[order], mask[order], model.fill(), places), scores[order])
    others_x, others_mask = x.clone(), mask.clone()
    others_x[1:], others_mask[1:] = 100 * x[1:].flip(0), 0.5
    assert torch.equal(model.score_paths(others_x, others_mask, model.fill(), places)[0], scores[0])


@pytest.mark.parametrize("name", ["deepfm", "dcnv2"])
def test_paths_learn_as_full_masks_do(name: str) -> None:
    model = model_of(name).requires_grad_(True)
    batch, places = random_batch(5), torch.tensor([1, 3])
    mask = torch.rand(5, 2, 2, generator=torch.Generator().manual_seed(0))
    gradients = []
    for score in (
        lambda x: model.score_paths(x, mask, model.fill(), places),
        lambda x: model.score(x, whole_mask(mask, places)),
    ):
        model.zero_grad()
        score(model.embed(batch)).square().sum().backward()
        gradients.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize(("name", "most"), [("deepfm", 0.55), ("dcnv2", 0.75)])
def test_updating_costs_less_than_recomputing(name: str, most: float) -> None:
    model, places = model_of(name), torch.tensor([0, 1])
    x, mask = model.embed(random_batch(16)), torch.zeros(16, 8, 2)
    updated = flops(lambda: model.score_paths(x, mask, model.fill(), places))
    recomputed = flops(lambda: model.score(x, whole_mask(mask, places)))
    assert 0 < updated < most * recomputed
