"""Distances against scipy and by hand; noise against draws, of independent rows and of rows that come together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from thinktwice.stats.distances import distance, jensen_shannon, psi, sample

COUNTS = st.lists(st.integers(0, 500), min_size=4, max_size=4).filter(lambda v: sum(v) > 0)
ZIPF = 1 / np.arange(1, 24)


def test_psi_of_large_samples_is_the_symmetric_divergence() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    assert psi(p * 1e9, q * 1e9) == pytest.approx(entropy(p, q) + entropy(q, p), rel=1e-6)


def test_psi_by_hand() -> None:
    """Each sample gets one more row, spread as both together: here 0.375 and 0.625 of it."""
    p = np.array([50.375, 50.625]) / 101
    q = np.array([50.375, 150.625]) / 201
    expected = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    assert psi(np.array([50.0, 50.0]), np.array([50.0, 150.0])) == pytest.approx(expected)
    assert psi(np.array([50.0, 50.0, 0.0]), np.array([50.0, 150.0, 0.0])) == pytest.approx(expected), "empty in both"


@given(COUNTS, COUNTS)
@settings(deadline=None)
def test_distances_hold_their_ranges(a: list[int], b: list[int]) -> None:
    one, two = np.array(a, float), np.array(b, float)
    assert psi(one, two) >= 0 and psi(one, one) == pytest.approx(0)
    assert psi(one, two) == pytest.approx(psi(two, one))
    found = jensen_shannon(one, two)
    assert found == pytest.approx(jensenshannon(one, two, base=2), abs=1e-7)
    assert 0 <= found <= 1 + 1e-12
    assert np.isfinite(psi(one, two))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(sum), st.integers(1, 10**6))
@settings(deadline=None)
def test_equal_shares_are_at_no_distance(counts: list[int], times: int) -> None:
    one = np.array(counts, float)
    assert 0 <= jensen_shannon(one, one * times) < 1e-7


def test_nothing_lies_nowhere() -> None:
    some, none = np.array([3.0, 4.0]), np.zeros(2)
    assert psi(some, none) == psi(none, some) == jensen_shannon(some, none) == 0


def test_independent_rows_vary_as_the_formula_says() -> None:
    bins = np.random.default_rng(0).choice(5, 4000, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    found = sample(bins, np.arange(4000), 7)
    assert found.counts.sum() == 4000 and len(found.counts) == 7
    assert found.effective == pytest.approx(4000, rel=0.02)
    assert found.uneven == pytest.approx(1, abs=0.05)
    far = distance(found, bins[:1000], np.arange(1000))
    assert far.expected == pytest.approx(4 * (1 / 4000 + 1 / 1000), rel=0.05)


def test_repeated_rows_are_no_further_evidence() -> None:
    bins = np.random.default_rng(1).choice(5, 400)
    once = sample(bins, np.arange(400), 5)
    ten_times = sample(np.repeat(bins, 10), np.repeat(np.arange(400), 10), 5)
    assert ten_times.effective == pytest.approx(once.effective)
    assert sample(np.repeat(bins, 10), np.arange(4000), 5).effective == pytest.approx(10 * once.effective, rel=0.01)


def test_samples_that_say_nothing() -> None:
    assert sample(np.zeros(50, int), np.zeros(50, int), 3).effective == 1, "one user"
    assert sample(np.zeros(50, int), np.arange(50), 3).effective == 50, "one value"
    only = distance(sample(np.zeros(50, int), np.arange(50), 3), np.zeros(9, int), np.arange(9))
    assert (only.psi, only.noise, only.js) == (0, 0, 0)


@pytest.mark.parametrize(
    ("share", "reference", "rows", "together"),
    [
        (np.array([0.5, 0.3, 0.15, 0.05]), 800, 500, 1),
        (np.array([0.5, 0.3, 0.15, 0.05]), 5000, 3000, 10),
        (np.full(24, 1 / 24), 20_000, 300, 1),
        (ZIPF / ZIPF.sum(), 20_000, 300, 1),
        (ZIPF / ZIPF.sum(), 5000, 3000, 10),
        (np.r_[0.9, np.full(20, 0.005)], 20_000, 300, 1),  # bins too rare for a chi-square law
    ],
)
def test_noise_is_what_chance_exceeds_once_in_a_thousand(
    share: np.ndarray, reference: int, rows: int, together: int
) -> None:
    rng = np.random.default_rng(2)
    above, indices, expected = 0, [], []
    for _ in range(300):
        one = sample(rng.choice(len(share), reference, p=share), np.arange(reference), len(share))
        two = np.repeat(rng.choice(len(share), rows // together, p=share), together)
        own = rng.random(len(two)) < 0.3  # most rows of a cluster agree, some do not
        two = np.where(own, rng.choice(len(share), len(two), p=share), two)
        found = distance(one, two, np.repeat(np.arange(rows // together), together))
        indices.append(found.psi)
        expected.append(found.expected)
        above += found.psi > found.noise
    assert above <= 5
    assert np.mean(indices) == pytest.approx(np.mean(expected), rel=0.25)
