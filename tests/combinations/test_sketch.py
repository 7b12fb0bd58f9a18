"""Counts in bounded memory: exact while they fit, never below the truth, and a lower bound that holds."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.combinations.sketch import FrequencySketch, sketch_of
from thinktwice.splitmix import mix

SMALL = st.lists(st.integers(0, 60), max_size=300)


def keys_of(values: list[int] | np.ndarray) -> np.ndarray:
    return mix(np.asarray(values, np.uint64))


def true_counts(values: np.ndarray, distinct: int) -> np.ndarray:
    return np.bincount(values, minlength=distinct)


@pytest.fixture(scope="module")
def zipf() -> tuple[np.ndarray, np.ndarray]:
    """A million draws of 200,000 values under Zipf's law, and how often each came."""
    reach = np.cumsum(np.arange(1, 200_001) ** -1.1)
    drawn = np.searchsorted(reach, np.random.default_rng(0).random(1_000_000) * reach[-1]).clip(0, 199_999)
    return drawn, true_counts(drawn, 200_000)


def test_mixing_is_one_to_one_and_spreads_small_numbers_over_all_bits() -> None:
    keys = keys_of(np.arange(100_000))
    assert len(np.unique(keys)) == 100_000
    share = [(keys >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)]
    assert np.allclose(share, 0.5, atol=0.01)


@given(SMALL)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_counts_are_exact_while_all_keys_fit(values: list[int]) -> None:
    found = sketch_of([keys_of(values)], capacity=64, width=64).finished()
    asked = np.arange(61)
    truth = true_counts(np.array(values, np.int64), 61)
    assert np.array_equal(found.upper(keys_of(asked)), truth)
    assert np.array_equal(found.lower(keys_of(asked)), truth)


@given(SMALL, st.integers(0, 20), st.integers(1, 7))
@settings(max_examples=80, derandomize=True, deadline=None)
def test_never_below_the_truth_and_never_negative(values: list[int], capacity: int, step: int) -> None:
    chunks = [keys_of(values[s : s + 40 * step]) for s in range(0, len(values), 40 * step)]
    sketch = sketch_of(chunks, capacity, width=64)
    assert (sketch.counts.sum() + sketch.cells.sum(axis=1) == len(values)).all()  # nothing is lost or counted twice
    found = sketch.finished()
    truth = true_counts(np.array(values, np.int64), 61)
    assert (found.upper(keys_of(np.arange(61))) >= truth).all()
    lower = found.lower(keys_of(np.arange(61)))
    assert (lower >= 0).all() and (lower <= found.upper(keys_of(np.arange(61)))).all()


@pytest.mark.parametrize(("capacity", "width"), [(1 << 12, 1 << 14), (1 << 14, 1 << 16), (0, 1 << 16)])
def test_the_lower_bound_holds_for_95_percent_of_keys(
    zipf: tuple[np.ndarray, np.ndarray], capacity: int, width: int
) -> None:
    drawn, truth = zipf
    found = sketch_of([keys_of(part) for part in np.array_split(drawn, 7)], capacity, width).finished()
    asked = keys_of(np.arange(len(truth)))
    assert (found.lower(asked) <= truth).mean() >= 0.95
    assert (found.lower(asked)[truth > 0] <= truth[truth > 0]).mean() >= 0.95
    assert (found.upper(asked) >= truth).all()
    assert found.noise > 0 and (found.lower(asked) >= 0).all()


def test_the_frequent_keys_are_kept_apart_and_their_bounds_are_tight(zipf: tuple[np.ndarray, np.ndarray]) -> None:
    drawn, truth = zipf
    found = sketch_of([keys_of(part) for part in np.array_split(drawn, 7)], 1 << 12, 1 << 16).finished()
    top = np.argsort(-truth)[:1000]
    lower, upper = found.lower(keys_of(top)), found.upper(keys_of(top))
    assert (upper - lower <= found.noise + 1).all()
    assert np.abs(upper - truth[top]).max() <= 0.05 * truth[top].min() + 3 * found.noise


@given(SMALL, SMALL)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_merging_adds_up(first: list[int], second: list[int]) -> None:
    asked = keys_of(np.arange(61))
    truth = true_counts(np.array([*first, *second], np.int64), 61)
    exact = [sketch_of([keys_of(v)], 64, 64) for v in (first, second)]
    merged = exact[0].merged(exact[1]).finished()
    assert np.array_equal(merged.upper(asked), truth)
    assert np.array_equal(merged.lower(asked), truth)
    cells = [sketch_of([keys_of(v)], 0, 64) for v in (first, second)]
    whole = sketch_of([keys_of(first), keys_of(second)], 0, 64)
    assert np.array_equal(cells[0].merged(cells[1]).cells, whole.cells)
    tight = [sketch_of([keys_of(v)], 5, 64) for v in (first, second)]
    joined = tight[0].merged(tight[1])
    assert len(joined.keys) <= 5
    assert (joined.finished().upper(asked) >= truth).all()


def test_a_key_that_comes_a_little_in_every_chunk_is_kept_apart_once_its_estimate_wins() -> None:
    sketch = sketch_of([keys_of([1] * 3 + [2] * 2)], capacity=1, width=1 << 12)
    assert list(sketch.keys) == list(keys_of([1]))
    sketch.add(keys_of([2] * 2))
    assert list(sketch.keys) == list(keys_of([2]))
    assert (list(sketch.counts), list(sketch.whole)) == ([2], [False])  # since then; the rest stays in the cells
    assert list(sketch.finished().upper(keys_of([1, 2]))) == [3, 4]


def test_a_key_kept_apart_from_its_first_time_on_is_exact_even_after_others_spilled() -> None:
    sketch = sketch_of([keys_of([1] * 5 + [2] * 4 + [3])], capacity=2, width=1 << 12)  # 3 spills
    sketch.add(keys_of([4] * 10))  # takes the place of 2, whose count spills
    sketch.add(keys_of([3] * 20))  # takes the place of 1; once it was in the cells
    assert dict(zip(sketch.keys, sketch.whole, strict=True)) == {keys_of([4])[0]: True, keys_of([3])[0]: False}
    found = sketch.finished()
    asked = keys_of([1, 2, 3, 4])
    assert (found.noise, list(found.upper(asked)), list(found.lower(asked))) == (0, [5, 4, 21, 10], [5, 4, 21, 10])


def test_merging_knows_which_keys_lie_in_the_cells_of_the_other() -> None:
    first = sketch_of([keys_of([1] * 5 + [2] * 4)], capacity=2, width=1 << 12)
    second = sketch_of([keys_of([8] * 7 + [9] * 6 + [2])], capacity=2, width=1 << 12)  # 2 spills here
    for merged in (first.merged(second), second.merged(first)):
        assert set(merged.keys) == set(keys_of([8, 9]))
        assert merged.whole.all()  # neither ever was in the cells of a part
    wide = [FrequencySketch(s.cells, s.keys, s.counts, s.whole, 4) for s in (first, second)]
    for merged in (wide[0].merged(wide[1]), wide[1].merged(wide[0])):
        assert dict(zip(merged.keys, merged.whole, strict=True)) == dict(
            zip(keys_of([1, 2, 8, 9]), (True, False, True, True), strict=True)
        )
        assert list(merged.finished().upper(keys_of([1, 2, 8, 9]))) == [5, 5, 7, 6]


def test_sketches_of_other_sizes_are_not_merged() -> None:
    with pytest.raises(ValueError, match="build them with equal sizes"):
        FrequencySketch.empty(4, 64).merged(FrequencySketch.empty(4, 128))
    with pytest.raises(ValueError, match="power of two"):
        FrequencySketch.empty(4, 100)


def test_the_order_of_chunks_does_not_matter_while_all_keys_fit() -> None:
    values = np.random.default_rng(1).integers(0, 500, 5000)
    one = sketch_of([keys_of(values)], 600, 64)
    other = sketch_of([keys_of(part) for part in np.array_split(values[::-1], 13)], 600, 64)
    assert np.array_equal(one.keys, other.keys)
    assert np.array_equal(one.counts, other.counts)


def test_counting_needs_no_torch() -> None:
    code = (
        "import sys, thinktwice.combinations.counts, thinktwice.combinations.sketch; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
