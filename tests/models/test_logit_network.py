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


FIRST = 9  # inputs that are given separately


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**31), st.booleans(), st.booleans())
def test_a_row_has_the_same_bits_in_any_company(rows: int, seed: int, ordered: bool, apart: bool) -> None:
    found, again = network(), network()
    if ordered:
        found._forwards[FIRST] = found._forwards[WIDTH] = found._in_order
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    x[rng.random(rows) < 0.5, FIRST:] = 0

    def changes(part: np.ndarray, of: Network = found) -> np.ndarray:
        if not apart:
            return of(part)
        return of(part[:, :FIRST], part[:, FIRST:] if part[:, FIRST:].any() else None)

    expected, order = changes(x), rng.permutation(rows)
    assert np.array_equal(changes(x[order]), expected[order])
    start = int(rng.integers(0, rows))
    assert np.array_equal(changes(x[start:]), expected[start:])
    assert np.array_equal(changes(x[start : start + 1]), expected[start : start + 1])
    with torch.inference_mode():
        assert np.array_equal(changes(x), expected)
    assert np.array_equal(changes(x, again), expected) or ordered  # after a restart


def test_inputs_of_a_call_are_the_sum_of_its_parts() -> None:
    found, x = network(), np.random.default_rng(3).normal(size=(50, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(found(x[:, :FIRST], x[:, FIRST:]), found(x), rtol=1e-4, atol=1e-4)
    x[:, FIRST:] = 0
    np.testing.assert_allclose(found(x[:, :FIRST]), found(x), rtol=1e-4, atol=1e-4)


def test_both_ways_to_compute_agree() -> None:
    found = network()
    x = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found._in_blocks(x), found._in_order(x), rtol=1e-4, atol=1e-4)
    w0, b0, w1, b1, w2, b2 = (torch.from_numpy(a) for a in found.arrays)
    expected = torch.relu(torch.relu(x @ w0 + b0) @ w1 + b1) @ w2 + b2
    torch.testing.assert_close(found._in_blocks(x), expected[:, 0], rtol=1e-4, atol=1e-4)


def test_kernels_whose_bits_depend_on_the_place_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = network()

    def by_place(*parts: torch.Tensor) -> torch.Tensor:
        return Network._in_blocks(found, *parts) + 1e-6 * torch.arange(len(parts[0]))

    def by_zeros(*parts: torch.Tensor) -> torch.Tensor:
        return Network._in_blocks(found, *parts) + 1e-3 * len(parts)

    for first in (FIRST, WIDTH):
        assert found.same_bits(found._in_blocks, first) and not found.same_bits(by_place, first)
    assert not found.same_bits(by_zeros, FIRST)
    monkeypatch.setattr(Network, "same_bits", lambda self, forward, first: False)
    assert network()._forward(WIDTH).__name__ == "_in_order"


def test_a_last_layer_of_zeros_changes_nothing() -> None:
    zero = network(last=0.0)
    assert zero.is_zero and not network().is_zero
    assert np.array_equal(zero(np.full((3, WIDTH), 1e30, np.float32)), np.zeros(3))
    assert network()(np.zeros((0, WIDTH), np.float32)).shape == (0,)


def test_logits_enter_within_bounds() -> None:
    found = logit_input(np.array([-1e9, 2.0, 1e9]))
    assert found.tolist() == [-MAX_LOGIT / 2, 1.0, MAX_LOGIT / 2]
