"""Combinations of values: counted exactly as they came, unknown values never, and mapped from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.memory_maps import is_mapped
from thinktwice.combinations.counts import COMBINATIONS_FILE, KAPPA, CombinationCounts, maskable_pairs
from thinktwice.errors import BundleError

SIZES = (30, 20, 10, 5)
PAIRS = ((0, 1), (0, 2), (1, 3))
TRIPLES = ((0, 1, 2),)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([(size * rng.random(4000) ** 2).astype(np.int32) for size in SIZES], axis=1)


@pytest.fixture(scope="module")
def counts(ids: np.ndarray) -> CombinationCounts:
    return CombinationCounts.fit(np.array_split(ids, 3), PAIRS, TRIPLES, SIZES)


def brute_force(ids: np.ndarray, rows: np.ndarray, columns: tuple[int, ...]) -> np.ndarray:
    some = ids[:, columns]
    known = (rows[:, columns] > 0).all(axis=1)
    return np.array([(some == row).all(axis=1).sum() for row in rows[:, columns]]) * known


def test_counts_are_those_of_a_brute_force_search(ids: np.ndarray, counts: CombinationCounts) -> None:
    rows = ids[:200].copy()
    rows[::5, 1] = 0  # unknown
    bound = counts.lower_bound(rows)
    assert bound.shape == (200, 4)
    for place, columns in enumerate((*PAIRS, *TRIPLES)):
        assert np.array_equal(bound[:, place], brute_force(ids, rows, columns)), columns
    assert (bound[::5, [0, 2, 3]] == 0).all()


def test_reliability_is_c_over_c_plus_kappa(ids: np.ndarray, counts: CombinationCounts) -> None:
    bound, found = counts.lower_bound(ids[:50]), counts.reliability(ids[:50])
    assert np.allclose(found[:, :3], bound[:, :3] / (bound[:, :3] + KAPPA[2]))
    assert np.allclose(found[:, 3], bound[:, 3] / (bound[:, 3] + KAPPA[3]))


def test_the_pair_matrix_is_symmetric_and_one_where_nothing_is_counted(
    ids: np.ndarray, counts: CombinationCounts
) -> None:
    matrix, known = counts.pair_matrix(ids[:20], 6), counts.reliability(ids[:20])
    assert np.array_equal(matrix, matrix.transpose(0, 2, 1))
    assert np.array_equal(matrix[:, 1, 0], known[:, 0])
    assert (matrix[:, 2, 3] == 1).all() and (matrix[:, 4] == 1).all()
    assert (np.diagonal(matrix, axis1=1, axis2=2) == 1).all()


def test_a_column_pair_does_not_share_counts_with_another(ids: np.ndarray) -> None:
    same = np.repeat(ids[:, :1], 3, axis=1)
    first = CombinationCounts.fit([same], ((0, 1),), (), (30, 30, 30))
    asked = CombinationCounts(((0, 2),), (), (30, 30, 30), first.orders)
    known = (same[:50] > 0).all(axis=1)
    assert (first.lower_bound(same[:50])[known] > 0).all()
    assert (asked.lower_bound(same[:50]) == 0).all()


def test_shuffled_counts_are_those_of_other_values(ids: np.ndarray, counts: CombinationCounts) -> None:
    shuffled = counts.shuffled(3)
    known = ids[(ids > 0).all(axis=1)]
    real, other = counts.lower_bound(known)[:, 0], shuffled.lower_bound(known)[:, 0]
    assert abs(np.corrcoef(real, other)[0, 1]) < 0.35
    assert np.array_equal(counts.shuffled(3).lower_bound(ids), shuffled.lower_bound(ids))
    unknown = np.zeros((1, 4), np.int64)
    assert (shuffled.lower_bound(unknown) == 0).all()


def test_what_is_saved_is_mapped_read_only_and_answers_the_same(
    ids: np.ndarray, counts: CombinationCounts, tmp_path: Path
) -> None:
    counts.save(tmp_path)
    first, second = CombinationCounts.load(tmp_path), CombinationCounts.load(tmp_path)
    assert first.pairs == PAIRS and first.triples == TRIPLES and first.num_values == SIZES
    assert np.array_equal(first.reliability(ids), counts.reliability(ids))
    for loaded in (first, second):
        cells = loaded.orders[2].cells
        assert not cells.flags.writeable
        assert is_mapped(cells, tmp_path / COMBINATIONS_FILE)  # both map the same file


@pytest.mark.parametrize("damage", ["missing", "truncated", "header"])
def test_a_damaged_file_is_named(damage: str, counts: CombinationCounts, tmp_path: Path) -> None:
    counts.save(tmp_path)
    path = tmp_path / COMBINATIONS_FILE
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1000] if damage == "truncated" else b"\xff" * 8 + content[8:])
    with pytest.raises(BundleError, match=r"combinations\.safetensors"):
        CombinationCounts.load(tmp_path)


def test_open_pairs_are_all_pairs_up_to_a_limit() -> None:
    assert maskable_pairs(np.array([0, 2, 5])) == ((0, 2), (0, 5), (2, 5))
    assert len(maskable_pairs(np.arange(20))) == 64
    assert maskable_pairs(np.array([4])) == ()


def test_many_combinations_stay_within_the_memory_of_the_sketch() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 5000, (30_000, 2)).astype(np.int32)
    counts = CombinationCounts.fit([ids], ((0, 1),), (), (5000, 5000), capacity=1000, width=1 << 12)
    assert len(counts.orders[2].keys) == 1000
    truth = np.unique(ids, axis=0, return_counts=True)
    bound = counts.lower_bound(truth[0])[:, 0]
    assert (bound <= truth[1]).mean() >= 0.95
