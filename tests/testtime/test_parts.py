"""Triggers, masks, samplers and aggregators, each alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from thinktwice.testtime import TestTimeConfig, samplers, trigger
from thinktwice.testtime.aggregate import aggregate, weighted_median
from thinktwice.testtime.masks import filter_mask
from thinktwice.testtime.reliability import Reliability, quantise
from thinktwice.testtime.rowhash import uniforms

RNG = np.random.default_rng(0)
HASH = RNG.integers(0, 2**63, 300).astype(np.uint64)


def test_uniforms_look_uniform_and_belong_to_the_hash() -> None:
    u = uniforms(RNG.integers(0, 2**63, 20_000).astype(np.uint64), 5)
    assert ((u >= 0) & (u < 1)).all()
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(u.T) - np.eye(5), 0, atol=0.03)
    assert np.array_equal(uniforms(HASH, 8)[:, :3], uniforms(HASH, 3))


def test_entropy_and_epistemic_signal() -> None:
    np.testing.assert_allclose(trigger.entropy(np.array([0.5, 0.0, 1.0])), [1, 0, 0], atol=1e-9)
    r = np.array([[1.0, 1.0, 1.0], [0.0, 0.5, 1.0]])
    np.testing.assert_allclose(trigger.epistemic(r, np.array([0, 1]), ()), [0, 0.75])
    np.testing.assert_allclose(trigger.epistemic(r, np.array([0, 1]), (0.9, 0.1, 0.0)), [0, 0.95])
    assert (trigger.epistemic(r, np.array([], int), ()) == 0).all()


def test_dual_signal_bypasses_a_well_supported_coin_flip() -> None:
    config = TestTimeConfig(mode="uttsi", trigger="dual", threshold=0.2)
    missing, bits = np.array([0.01, 0.6, 0.6, 0.0]), np.array([1.0, 1.0, 0.1, 0.0])
    value = trigger.signal(config, missing, bits, HASH[:4])
    assert (value > config.threshold).tolist() == [False, True, True, False]
    assert value[1] > value[2]


@pytest.mark.parametrize(("kind", "explored"), [("never", 0), ("always", 300)])
def test_constant_triggers(kind: str, explored: int) -> None:
    config = TestTimeConfig(mode="uttsi", trigger=kind, threshold=0.5)  # type: ignore[arg-type]
    value = trigger.signal(config, np.full(300, 0.5), np.full(300, 0.5), HASH)
    assert (trigger.num_paths(config, value) > 0).sum() == explored


def test_random_trigger_has_the_asked_rate() -> None:
    config = TestTimeConfig(mode="uttsi", trigger="random", threshold=0.8)
    many = RNG.integers(0, 2**63, 20_000).astype(np.uint64)
    value = trigger.signal(config, np.zeros(20_000), np.zeros(20_000), many)
    assert (trigger.num_paths(config, value) > 0).mean() == pytest.approx(0.2, abs=0.01)


def test_depth_grows_with_the_signal_in_even_steps() -> None:
    config = TestTimeConfig(mode="uttsi", trigger="dual", threshold=0.2, signal_max=0.6, max_paths=8)
    found = trigger.num_paths(config, np.array([0.1, 0.2, 0.21, 0.35, 0.6, 0.9]))
    assert found.tolist() == [0, 0, 2, 4, 8, 8]


def test_filter_keeps_supported_values_and_a_share_of_all_fields() -> None:
    counts = quantise(np.array([0, 1, 5, 20, 0, 2, 6, 30]))
    reliability = Reliability(counts, np.full(3, 10.0), (4, 4), np.array([False, False, True]))
    ids = np.array([[3, 3], [1, 3], [1, 1], [0, 0]])
    assert filter_mask(reliability, ids, 3, 0.0).tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]]
    # Two of three fields stay; the more reliable one comes back, the first of equals.
    assert filter_mask(reliability, ids, 3, 0.6).tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [1, 0, 1]]


def test_bernoulli_paths_are_distinct_antithetic_and_never_restore_filtered_fields() -> None:
    rows, fields = 300, 6
    r = RNG.uniform(0, 1, (rows, fields))
    r[:, 5] = 1.0  # a protected field
    base = RNG.random((rows, fields)) < 0.8
    wanted = np.full(rows, 8)
    paths = samplers.draw("bernoulli", base, r, wanted, HASH, 8)
    for row in range(rows):
        used = paths.mask[row, : paths.used[row]]
        assert len({m.tobytes() for m in used} | {base[row].tobytes()}) == paths.used[row] + 1
        assert not (used & ~base[row]).any()
        assert (used[:, 5] == base[row, 5]).all()
        assert paths.weight[row].sum() + paths.base_weight[row] == 8 + samplers.BASE_DRAWS
        assert (paths.weight[row, paths.used[row] :] == 0).all()


def test_bernoulli_keeps_a_field_as_often_as_its_reliability_says() -> None:
    many = RNG.integers(0, 2**63, 4000).astype(np.uint64)
    r = np.tile([0.0, 0.25, 0.64, 1.0], (4000, 1))
    paths = samplers.draw("bernoulli", np.ones((4000, 4), bool), r, np.full(4000, 8), many, 8)
    draws = paths.weight.sum() + (paths.base_weight - samplers.BASE_DRAWS).sum()
    kept = (paths.weight[:, :, None] * paths.mask).sum(axis=(0, 1)) + (paths.base_weight - samplers.BASE_DRAWS).sum()
    np.testing.assert_allclose(kept / draws, [samplers.KEEP_MIN, 0.5, 0.8, 1.0], atol=0.01)


def test_enumeration_is_the_exact_mixture() -> None:
    r = np.array([[0.25, 0.64, 1.0, 1.0], [0.25, 0.25, 0.25, 0.25]])
    base = np.ones((2, 4), bool)
    paths = samplers.draw("enumerate", base, r, np.array([2, 2]), HASH[:2], 4)
    total = paths.weight[0].sum() + paths.base_weight[0]
    found = {tuple(m[:2].tolist()): w / total for m, w in zip(paths.mask[0], paths.weight[0], strict=True) if w > 0}
    found[True, True] = paths.base_weight[0] / total
    for a, b in itertools.product((True, False), repeat=2):
        assert found[a, b] == pytest.approx(0.5 * (0.8 if b else 0.2))
    assert paths.used[0] == 3
    assert paths.mask[0, :3, 2:].all()  # certain fields stay in all three paths
    assert paths.used[1] <= 2  # two were asked for: four doubtful fields are sampled


@pytest.mark.parametrize("most", [2, 3, 4, 6, 7, 8])
def test_enumeration_keeps_to_the_largest_number_of_paths(most: int) -> None:
    """Three doubtful fields have seven subsets, two have three, one has one; too many are sampled instead."""
    r = np.array([[0.1, 0.4, 0.7, 1.0], [0.1, 0.4, 1.0, 1.0], [0.1, 1.0, 1.0, 1.0]])
    wanted = np.full(3, most // 2 * 2)
    paths = samplers.draw("enumerate", np.ones((3, 4), bool), r, wanted, HASH[:3], most)
    assert (paths.used <= most).all()
    assert paths.mask.shape[1] == paths.weight.shape[1] == most
    assert [paths.used[row] == size for row, size in ((0, 7), (1, 3), (2, 1)) if size <= most] == [True] * sum(
        size <= most for size in (7, 3, 1)
    )
    drawn = samplers.draw("bernoulli", np.ones((3, 4), bool), r, wanted, HASH[:3], most)
    if most < 7:
        assert paths.used[0] == drawn.used[0]
        assert paths.weight[0].sum() == drawn.weight[0].sum()


def test_enumeration_does_not_depend_on_the_draws() -> None:
    r = np.tile([0.1, 0.4, 0.7, 1.0], (5, 1))
    paths = samplers.draw("enumerate", np.ones((5, 4), bool), r, np.full(5, 8), HASH[:5], 8)
    assert (paths.used == 7).all()
    assert (paths.weight == paths.weight[0]).all()


def test_weighted_median_equals_the_median_of_repeated_values() -> None:
    for _ in range(50):
        value = RNG.normal(0, 1, 6)
        weight = RNG.integers(0, 4, 6).astype(float)
        if weight.sum() == 0:
            continue
        expected = np.median(np.repeat(value, weight.astype(int)))
        assert weighted_median(value[None], weight[None])[0] == pytest.approx(expected)


def test_aggregators() -> None:
    z = np.array([[0.0, 0.1, -0.1, 5.0]])
    weight, support = np.array([[2.0, 1.0, 1.0, 1.0]]), np.ones((1, 4))
    assert aggregate("mean", z, weight, support)[0] == pytest.approx(1.0)
    assert aggregate("median", z, weight, support)[0] == pytest.approx(0.0)
    assert abs(aggregate("consistency", z, weight, support)[0]) < 0.05  # the stray path counts for nothing
    low = aggregate("consistency", z, weight, np.array([[0.1, 1.0, 0.1, 0.1]]))[0]
    assert low > aggregate("consistency", z, weight, support)[0]  # support draws to the second path
    padded = np.array([[0.0, 0.1, -0.1, 5.0, 99.0]])
    for kind in ("mean", "median", "consistency"):
        same = aggregate(kind, padded, np.c_[weight, [[0.0]]], np.ones((1, 5)))  # type: ignore[arg-type]
        assert same[0] == pytest.approx(aggregate(kind, z, weight, support)[0])  # type: ignore[arg-type]
