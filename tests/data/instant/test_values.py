"""Single steps from sums to counters, and the hashes of keys; frozen where states and bundles depend on them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinktwice.data.instant.definition import Crossed
from thinktwice.data.instant.keys import key_hash, slots_of, ties
from thinktwice.data.instant.values import elapsed, elapsed_float32, log1p, residuals, smoothed


@given(st.lists(st.floats(0, 1e18), min_size=1, max_size=50))
def test_the_logarithm_is_close_to_that_of_the_library(values: list[float]) -> None:
    x = np.array(values)
    np.testing.assert_allclose(log1p(x), np.log1p(x), rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(log1p(x), [log1p(np.array([v]))[0] for v in values])


def test_the_logarithm_has_the_same_bits_everywhere() -> None:
    x = np.concatenate([np.arange(5000.0), 10.0 ** np.arange(16), np.arange(1, 2000) / 7])
    assert hashlib.sha256(log1p(x).astype(np.float32).tobytes()).hexdigest() == (
        "af4cf8f160595a2c6eb242b1a5cb8d74406fd0424636eb2b19ddce266423aa4f"
    )


@given(st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=40), st.integers(0, 2**32))
def test_seconds_in_single_precision_have_the_bits_of_the_exact_ones(values: list[int], seed: int) -> None:
    """Of any numbers, and of many around 0 and around those whose logarithm is between two numbers of single precision."""
    rng = np.random.default_rng(seed)
    one = rng.uniform(0.7, 25, 500).astype(np.float32)
    halfway = (one.astype(np.float64) + np.nextafter(one, np.float32(99)).astype(np.float64)) / 2
    micro = np.rint(1e6 * np.expm1(halfway)).astype(np.int64)
    every = np.concatenate([values, micro, micro - 1, micro + 1, rng.integers(-5, 5000, 501)])
    since = every[: len(every) // 2 * 2].reshape(-1, 2)
    assert np.array_equal(elapsed_float32(since), elapsed(since).astype(np.float32))


def test_rates_and_residuals() -> None:
    assert smoothed(np.array([3]), np.array([5]), np.array([0.2])).tolist() == [(3 + 4) / 25]
    assert residuals(np.array([True, False]), np.array([0.25, 0.25])).tolist() == [3 << 18, -(1 << 18)]


def test_keys_slots_and_ties_are_what_they_were() -> None:
    """Frozen: states in a store are found and continued by these numbers."""
    assert [key_hash(v) for v in (None, "u1", "é")] == [0, 11367126444297510385, 17839895020865391795]
    hashed, exact = Crossed("genre", 32, None), Crossed("sex", 2, ("f", "m"))
    assert [hashed.slot(v) for v in ("a", "b", "1", None)] == [31, 31, 24, -1]
    assert [exact.slot(v) for v in ("f", "m", "x", None)] == [0, 1, -1, -1]
    found = ties(np.array([1, 2], np.uint64), np.array([3, 0], np.uint64), np.array([-5, 7]))
    assert found.tolist() == [890, 282]


@pytest.mark.parametrize("value", [42, 42.0, np.float32(42), "42"])
def test_a_value_has_one_slot_whatever_its_type(value: object) -> None:
    crossed = (Crossed("year", 32, None), Crossed("kind", 2, ("a", "42")))
    assert slots_of(crossed, {"year": value, "kind": value}) == (crossed[0].slot("42"), 1)
    assert slots_of(crossed, {"year": "", "kind": None}) == (-1, -1)


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**62), 2**62)), min_size=1)
)
def test_ties_are_small_numbers(keys: list[tuple[int, int, int]]) -> None:
    users, items, times = zip(*keys, strict=True)
    found = ties(np.array(users, np.uint64), np.array(items, np.uint64), np.array(times, np.int64))
    assert found.min() >= 0 and found.max() < 1024
