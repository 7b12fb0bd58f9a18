"""Lookups and sums with gradients of their own agree with torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from thinktwice.models.fm import field_sums
from thinktwice.models.lookup import means_of, rows_of
from thinktwice.threads import reproducible

PADDING = 3


def both(table: Tensor, weight: Tensor, *lookups: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Value and gradient of the table, for a loss that weighs every number of the value."""
    out = []
    for lookup in lookups:
        parameter = table.clone().requires_grad_()
        value = lookup(parameter)
        (value * weight.expand_as(value)).sum().backward()
        assert parameter.grad is not None
        out.append((value.detach(), parameter.grad))
    return out


def tables(draw: st.DataObject) -> tuple[Tensor, Tensor]:
    """A table [V, D] and an index [B, L]; B may be 0."""
    seed = draw.draw(st.integers(0, 2**31))
    rows, width = draw.draw(st.integers(5, 9)), draw.draw(st.integers(1, 4))
    shape = draw.draw(st.tuples(st.integers(0, 6), st.integers(1, 5)))
    generator = torch.Generator().manual_seed(seed)
    high = draw.draw(st.sampled_from((1, 4, rows)))
    index = torch.randint(0, high, shape, generator=generator)
    if draw.draw(st.booleans()) and index.numel():
        index[0] = PADDING
    return torch.randn(rows, width, generator=generator), index


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_rows_have_the_bits_of_torch(data: st.DataObject) -> None:
    table, index = tables(data)
    weight = torch.linspace(-1, 2, index.numel() * table.shape[1]).view(*index.shape, table.shape[1])
    with reproducible():
        ours, torchs = both(table, weight, lambda t: rows_of(t, index), lambda t: F.embedding(index, t))
    assert torch.equal(ours[0], torchs[0])
    torch.testing.assert_close(ours[1], torchs[1], rtol=1e-6, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_means_are_those_of_torch(data: st.DataObject) -> None:
    table, index = tables(data)
    weight = torch.linspace(-1, 2, len(index) * table.shape[1]).view(len(index), table.shape[1])

    def expected(t: Tensor) -> Tensor:
        return F.embedding_bag(index, t, mode="mean", padding_idx=PADDING)

    ours, torchs = both(table, weight, lambda t: means_of(t, index, PADDING), expected)
    torch.testing.assert_close(ours[0], torchs[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1], torchs[1], rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(means_of(table, index, PADDING), expected(table))


@pytest.mark.parametrize("size", [1, 50_000])
def test_the_same_bits_every_time(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(40, 17, generator=generator)
    index = torch.randint(0, 40, (size, 3), generator=generator)
    weight = torch.randn(size, 17, generator=generator)
    first, second = both(table, weight, *[lambda t: means_of(t, index, PADDING)] * 2)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_what_a_later_step_writes_into_the_table_changes_no_gradient() -> None:
    table = torch.randn(6, 2).requires_grad_()
    index = torch.tensor([[0, 3], [1, 1]])
    rows, means = rows_of(table, index), means_of(table, index, PADDING)
    with torch.no_grad():
        table.zero_()
    (rows.sum() + means.sum()).backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[2, 2], [3, 3], [0, 0], [1, 1], [0, 0], [0, 0]]


def test_a_sparse_gradient_stays_sparse() -> None:
    table = torch.randn(6, 2).requires_grad_()
    index = torch.tensor([[0, 3], [1, 1]])
    loss = (
        rows_of(table, index, sparse_gradient=True).sum() + means_of(table, index, PADDING, sparse_gradient=True).sum()
    )
    loss.backward()
    assert table.grad is not None and table.grad.is_sparse


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5), st.integers(1, 6), st.integers(2, 5), st.integers(0, 2**31))
def test_sums_over_fields_are_those_of_torch(rows: int, fields: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, fields, width, generator=generator)
    weights = [torch.randn(rows, n, generator=generator) for n in (fields * (width - 1), width, width)]

    def plain(value: Tensor) -> tuple[Tensor, ...]:
        return value[..., :-1].flatten(1), value.sum(dim=1), (value * value).sum(dim=1)

    found = []
    for sums in (field_sums, plain):
        own = x.clone().requires_grad_()
        parts = sums(own)
        torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum().backward()
        found.append((parts, own.grad))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(field_sums(x), plain(x), strict=True))
