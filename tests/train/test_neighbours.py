"""Neighbours of items against a loop over all pairs, with ties, heavy users, and rows without user or item."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.train import neighbours as module
from thinktwice.train.neighbours import NEIGHBOURS, SHRINKAGE, fit_neighbours, item_rates

ITEMS = 7


def oracle(users: np.ndarray, items: np.ndarray, clicked: np.ndarray, cap: int) -> np.ndarray:
    """Similarity of all pairs [I, I]."""
    rates = item_rates(items, clicked, ITEMS)
    taste: dict[int, dict[int, float]] = {}
    for user in set(users.tolist()) - {-1}:
        mine = [r for r in np.flatnonzero((users == user) & (items > 0))][-cap:]
        for r in mine:
            own = taste.setdefault(user, {})
            own[int(items[r])] = own.get(int(items[r]), 0.0) + float(clicked[r]) - float(rates[items[r]])
    out = np.zeros((ITEMS, ITEMS))
    norm = [np.sqrt(sum(t.get(i, 0.0) ** 2 for t in taste.values())) for i in range(ITEMS)]
    for i in range(ITEMS):
        for j in range(ITEMS):
            both = [t for t in taste.values() if i in t and j in t]
            if i != j and both and norm[i] * norm[j] > 0:
                product = sum(t[i] * t[j] for t in both)
                out[i, j] = product / (norm[i] * norm[j]) * len(both) / (len(both) + SHRINKAGE)
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 5), st.integers(0, ITEMS - 1), st.booleans()), max_size=60), st.integers(1, 8)
)
def test_they_are_those_of_a_loop_over_all_pairs(rows: list[tuple[int, int, bool]], cap: int) -> None:
    users, items = np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows], np.int32)
    clicked = np.array([r[2] for r in rows], bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_PER_USER", cap)
        patch.setattr(module, "ITEMS_AT_ONCE", 3)
        ids, weights, rates = fit_neighbours(users, items, clicked, ITEMS)
        renamed = fit_neighbours(np.where(users < 0, users, 100 - users), items, clicked, ITEMS)
    expected = oracle(users, items, clicked, cap)
    assert ids.shape == weights.shape == (ITEMS, NEIGHBOURS)
    assert (ids.dtype, weights.dtype, rates.dtype) == (np.int32, np.float16, np.float32)
    found = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        own = ids[item][weights[item] != 0]
        assert item not in own and 0 not in own and len(set(own.tolist())) == len(own)
        assert not ids[item][weights[item] == 0].any()
        assert (np.diff(np.abs(weights[item].astype(np.float32))) <= 0).all()
        found[item, own] = weights[item][weights[item] != 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(weights.astype(np.float64), renamed[1].astype(np.float64), rtol=0, atol=1e-3)


def test_the_strongest_of_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 4000), rng.integers(1, 400, 4000).astype(np.int32)
    clicked = rng.random(4000) < 0.4
    ids, weights, _ = fit_neighbours(users, items, clicked, 400)
    monkeypatch.setattr(module, "NEIGHBOURS", 20)
    fewer = fit_neighbours(users, items, clicked, 400)
    assert np.array_equal(fewer[0], ids[:, :20]) and np.array_equal(fewer[1], weights[:, :20])
    assert (ids[1:] > 0).all(axis=1).any()  # some items have as many as are kept


def test_rates_are_smoothed_towards_that_of_all() -> None:
    items = np.array([1] * 1000 + [2] * 2, np.int32)
    clicked = np.array([True] * 500 + [False] * 500 + [True] * 2)
    rates = item_rates(items, clicked, 4)
    assert rates[1] == pytest.approx(0.5, abs=0.01) and 0.5 < rates[2] < 0.6
    assert rates[3] == pytest.approx(clicked.mean())
    assert item_rates(np.zeros(0, np.int32), np.zeros(0, bool), 3).tolist() == [0.0, 0.0, 0.0]
