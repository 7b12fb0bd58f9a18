"""A network that changes logits: the same bits for a row in any company, and exactly nothing where its last layer is 0."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.models.logit_network import HIDDEN, MAX_LOGIT, Network, logit_input

WIDTH = 23


def network(seed: int = 0, width: int = WIDTH, *, last: float = 1.0) -> Network:
    rng = np.random.default_rng(seed)
    widths = (width, *HIDDEN, 1)
    arrays = []
    for rows, columns in pairwise(widths):
        arrays += [rng.normal(size=(rows, columns)).astype(np.float32), rng.normal(size=columns).astype(np.float32)]
    arrays[-2:] = [np.float32(last) * a for a in arrays[-2:]]
    return Network(tuple(arrays))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**31), st.booleans())
def test_a_row_has_the_same_bits_in_any_company(rows: int, seed: int, ordered: bool) -> None:
    found = network()
    if ordered:
        found.__dict__["_forward"] = found._in_order
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    expected, order = found(x), rng.permutation(rows)
    assert np.array_equal(found(x[order]), expected[order])
    start = int(rng.integers(0, rows))
    assert np.array_equal(found(x[start:]), expected[start:])
    assert np.array_equal(found(x[start : start + 1]), expected[start : start + 1])
    assert np.array_equal(network()(x), expected) or ordered  # after a restart


def test_both_ways_to_compute_agree() -> None:
    found = network()
    x = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found._in_blocks(x), found._in_order(x), rtol=1e-4, atol=1e-4)
    w0, b0, w1, b1, w2, b2 = (torch.from_numpy(a) for a in found.arrays)
    expected = torch.relu(torch.relu(x @ w0 + b0) @ w1 + b1) @ w2 + b2
    torch.testing.assert_close(found._in_blocks(x), expected[:, 0], rtol=1e-4, atol=1e-4)


def test_kernels_whose_bits_depend_on_the_place_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = network()

    def by_place(x: torch.Tensor) -> torch.Tensor:
        return Network._in_blocks(found, x) + 1e-6 * torch.arange(len(x))

    assert found.same_bits(found._in_blocks) and not found.same_bits(by_place)
    monkeypatch.setattr(Network, "same_bits", lambda self, forward: False)
    assert network()._forward.__name__ == "_in_order"


def test_a_last_layer_of_zeros_changes_nothing() -> None:
    zero = network(last=0.0)
    assert zero.is_zero and not network().is_zero
    assert np.array_equal(zero(np.full((3, WIDTH), 1e30, np.float32)), np.zeros(3))
    assert network()(np.zeros((0, WIDTH), np.float32)).shape == (0,)


def test_logits_enter_within_bounds() -> None:
    found = logit_input(np.array([-1e9, 2.0, 1e9]))
    assert found.dtype == np.float32 and found[:, 0].tolist() == [-MAX_LOGIT / 2, 1.0, MAX_LOGIT / 2]
