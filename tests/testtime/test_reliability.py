"""Counts in one byte, and shrinkage by moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thinktwice.data.encoded import count_values
from thinktwice.errors import BundleError
from thinktwice.models import FieldSpace
from thinktwice.testtime import base_pass
from thinktwice.testtime.base_pass import Filter
from thinktwice.testtime.reliability import DECODED, KAPPA_BOUNDS, Reliability, moment_kappa, quantise

FIELDS = FieldSpace(
    names=("user", "device", "recent"),
    kinds=("categorical", "categorical", "sequence"),
    entities=("user", "context", "user"),
    protected=(False, True, True),
    num_values=(50, 4),
    sequence_of=("user",),
    sequence_lengths=(3,),
)


@pytest.fixture
def ids() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(1, 50, 2000), rng.integers(0, 4, 2000)], axis=1).astype(np.int32)


def test_bytes_are_exact_for_small_counts_and_close_for_large() -> None:
    small = np.arange(23)
    assert np.array_equal(DECODED[quantise(small)], small)
    large = np.unique(np.geomspace(23, 60_000, 500).astype(int))
    assert np.abs(DECODED[quantise(large)] / large - 1).max() < 0.035
    assert quantise(np.array([10**9])) == 255
    assert (np.diff(DECODED) > 0).all()


def test_counts_are_those_of_the_training_rows(ids: np.ndarray) -> None:
    found = Reliability.fit(ids, np.zeros(2000), FIELDS)
    exact = count_values(ids, FIELDS.num_values)
    assert np.array_equal(found.counts, quantise(exact))
    assert found.counts[found.offsets].tolist() == [0, 0]  # unknown was never seen


def test_reliability_is_c_over_c_plus_kappa_and_one_where_protected(ids: np.ndarray) -> None:
    label = np.random.default_rng(1).integers(0, 2, 2000).astype(float)
    found = Reliability.fit(ids, label, FIELDS)
    r = found.of(ids[:100])
    counts = DECODED[quantise(count_values(ids, FIELDS.num_values))][ids[:100, 0]]
    np.testing.assert_allclose(r[:, 0], counts / (counts + found.kappa[0]))
    assert (r[:, 1:] == 1).all()
    assert found.of(np.array([[0, 1]]))[0, 0] == 0
    assert (found.of(ids[:100], strength=0.0)[:, 0] == 1).all()
    assert (found.of(ids[:100], strength=2.0)[:, 0] < r[:, 0]).all()


@pytest.mark.parametrize("kappa", [3.0, 20.0, 80.0])
def test_moments_find_the_kappa_that_made_the_data(kappa: float) -> None:
    rng = np.random.default_rng(7)
    values, per_value = 3000, 30
    rate = rng.beta(kappa * 0.3, kappa * 0.7, values)
    ids = np.repeat(np.arange(1, values + 1), per_value)
    label = (rng.random(len(ids)) < rate[ids - 1]).astype(float)
    assert moment_kappa(ids, label, values + 1) == pytest.approx(kappa, rel=0.25)


def test_kappa_bounds() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 40, 4000)
    assert moment_kappa(ids, (ids % 2).astype(float), 40) == KAPPA_BOUNDS[0]  # the value decides the label
    assert moment_kappa(ids, np.ones(4000), 40) == KAPPA_BOUNDS[1]
    assert moment_kappa(np.zeros(10, int), np.ones(10), 5) == KAPPA_BOUNDS[1]  # nothing known
    assert moment_kappa(np.arange(1, 11), np.arange(10) % 2, 11) == KAPPA_BOUNDS[1]  # every value once


def test_shuffled_counts_keep_the_counts_of_each_field(ids: np.ndarray) -> None:
    found = Reliability.fit(ids, np.zeros(2000), FIELDS)
    shuffled = found.shuffled()
    assert not np.array_equal(found.counts, shuffled.counts)
    for start, size in zip(found.offsets, found.num_values, strict=True):
        assert sorted(found.counts[start : start + size]) == sorted(shuffled.counts[start : start + size])
        assert shuffled.counts[start] == 0
    assert np.array_equal(found.shuffled(0).counts, shuffled.counts)


def test_saved_and_loaded(ids: np.ndarray, tmp_path: Path) -> None:
    found = Reliability.fit(ids, ids[:, 0] % 2, FIELDS)
    found.save(tmp_path)
    again = Reliability.load(tmp_path)
    assert np.array_equal(found.of(ids), again.of(ids))
    assert again.num_values == found.num_values
    whole = (tmp_path / "counts.safetensors").read_bytes()
    (tmp_path / "counts.safetensors").write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="truncated"):
        Reliability.load(tmp_path)


def test_the_table_of_reliabilities_is_that_of_the_values(ids: np.ndarray) -> None:
    found = Reliability.fit(ids, ids[:, 0] % 2, FIELDS)
    for strength in (0.0, 0.5, 2.0):
        table = found.of_table(strength)
        assert table.dtype == np.float32 and table.shape == (54,)
        np.testing.assert_allclose(table[ids + found.offsets], found.of(ids, strength)[:, :2], rtol=1e-6)


def test_the_filter_keeps_supported_values_and_a_share_of_all_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = quantise(np.array([0, 1, 5, 20, 0, 2, 6, 30]))
    reliability = Reliability(counts, np.full(3, 10.0), (4, 4), np.array([False, False, True]))
    ids = np.array([[3, 3], [1, 3], [1, 1], [0, 0]])
    r = reliability.of(ids)
    found = {}
    for share in (0.0, 0.6, base_pass.MIN_KEPT):
        monkeypatch.setattr(base_pass, "MIN_KEPT", share)
        kept = Filter(min_count=3).kept(reliability, ids, r)
        assert kept is not None
        found[share] = kept
    none, most = found[0.0], found[0.6]
    assert found[0.7].all()  # of three fields, a share of 0.7 is all
    assert none.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]]
    # Two of three fields stay; the more reliable one comes back, the first of equals.
    assert most.tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [1, 0, 1]]
