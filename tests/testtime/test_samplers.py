"""Feature paths: the right distribution, no repetition, and nothing that the base pass filtered comes back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.testtime import wide
from tests.testtime.wide import EXACT, UTTSI, but
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.base_pass import Plain
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.reliability import Reliability, quantise
from thinktwice.testtime.rowhash import hash_rows, uniforms
from thinktwice.testtime.samplers import Paths, SamplerInput
from thinktwice.testtime.samplers.bernoulli import KEEP_MIN, Bernoulli
from thinktwice.testtime.samplers.exact import Exact
from thinktwice.testtime.samplers.matt import Matt
from thinktwice.testtime.samplers.paths import BASE_DRAWS
from thinktwice.testtime.triggers import Always

RNG = np.random.default_rng(0)
HASH = RNG.integers(0, 2**63, 300).astype(np.uint64)
MANY = RNG.integers(0, 2**63, 4000).astype(np.uint64)
SAMPLERS = (Bernoulli(), Exact(), Matt(typical_pair=0.3))


def inputs_of(
    r: np.ndarray,
    *,
    kept: np.ndarray | None = None,
    wanted: int = 8,
    row_hash: np.ndarray = HASH,
    pairs: np.ndarray | None = None,
    triples: np.ndarray | None = None,
) -> SamplerInput:
    kept = np.ones(r.shape, bool) if kept is None else kept
    return SamplerInput(kept, r, pairs, triples, np.full(len(r), wanted), row_hash[: len(r)])


def draw(sampler: Bernoulli | Exact | Matt, inputs: SamplerInput, max_paths: int = 8) -> Paths:
    return sampler.draw(inputs, max_paths)


def test_uniforms_look_uniform_and_belong_to_the_hash() -> None:
    u = uniforms(RNG.integers(0, 2**63, 20_000).astype(np.uint64), 5)
    assert ((u >= 0) & (u < 1)).all()
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(u.T) - np.eye(5), 0, atol=0.03)
    assert np.array_equal(uniforms(HASH, 8)[:, :3], uniforms(HASH, 3))


def test_rows_of_other_content_have_other_hashes(big: wide.Wide) -> None:
    rows = big.later.take(np.zeros(4, int))
    rows.ids[1, 3] += 1
    rows.sequences["recent"][2, 3] += 1
    rows.vectors["look"][3, 0] = 0.25
    found = hash_rows(rows.batch(slice(None)), 0)
    assert len(set(found.tolist())) == 4
    assert not set(found.tolist()) & set(hash_rows(rows.batch(slice(None)), 1).tolist())


@pytest.mark.parametrize("wanted", [2, 6, 8])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_path_comes_twice_or_is_the_base_pass_or_restores_a_filtered_field(
    sampler: Bernoulli | Exact | Matt, wanted: int
) -> None:
    rows, fields = 300, 6
    r, kept = RNG.uniform(0, 1, (rows, fields)), RNG.random((rows, fields)) < 0.8
    r[:, 5] = 1.0
    pairs = np.sqrt(r[:, :, None] * r[:, None])
    paths = draw(sampler, inputs_of(r, kept=kept, wanted=wanted, pairs=pairs))
    assert paths.mask.shape == (rows, 8, fields)
    for row in range(rows):
        used = paths.used[row]
        real = paths.mask[row, :used]
        assert len({m.tobytes() for m in real} | {kept[row].tobytes()}) == used + 1
        assert not (real & ~kept[row]).any()
        assert (paths.weight[row, :used] > 0).all() and (paths.weight[row, used:] == 0).all()
        if sampler.kind != "matt":
            assert (real[:, 5] == kept[row, 5]).all()  # a fully supported value is never dropped
    drawn = ~paths.exact
    start = 0.0 if sampler.kind == "matt" else BASE_DRAWS
    np.testing.assert_allclose((paths.weight.sum(axis=1) + paths.base_weight)[drawn], start + wanted)
    assert (paths.used[drawn] <= wanted).all()
    assert paths.exact.any() == (sampler.kind == "exact")


def test_drawn_paths_come_in_antithetic_pairs() -> None:
    """Where every field stays in half of the paths, the second of a pair keeps what the first drops."""
    r = np.full((300, 12), 0.25)  # a field stays with probability sqrt(0.25)
    paths = draw(Bernoulli(), inputs_of(r))
    assert (paths.used == 8).mean() > 0.95  # of 4096 paths eight are hardly ever equal
    pairs = paths.mask[paths.used == 8].reshape(-1, 4, 2, 12)
    assert (pairs[:, :, 0] != pairs[:, :, 1]).all()
    assert not (pairs[:, 0, 0] != pairs[:, 1, 1]).all(axis=1).any()


def draws_that_keep(paths: Paths, base_draws: float) -> np.ndarray:
    """Share of all draws that kept each field [n]; every row's base pass keeps all fields."""
    base = (paths.base_weight - base_draws).sum()
    kept = (paths.weight[:, :, None] * paths.mask).sum(axis=(0, 1)) + base
    return kept / (paths.weight.sum() + base)


def test_guided_paths_keep_a_field_as_often_as_its_support_says() -> None:
    r = np.tile([0.0, 0.25, 0.64, 1.0], (4000, 1))
    paths = draw(Bernoulli(), inputs_of(r, row_hash=MANY))
    np.testing.assert_allclose(draws_that_keep(paths, BASE_DRAWS), [KEEP_MIN, 0.5, 0.8, 1.0], atol=0.01)


def test_pair_support_takes_its_share_of_the_keep_probability() -> None:
    r = np.array([[0.9, 0.9, 0.4]])
    pairs = np.array([[[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]]])
    expected = np.sqrt(0.7 * r[0] + 0.3 * np.array([0.5, 0.6, 0.3]))
    inputs = inputs_of(r, pairs=pairs)
    np.testing.assert_allclose(Bernoulli(pair_share=0.3).keep_probability(inputs)[0], expected)
    np.testing.assert_allclose(Bernoulli().keep_probability(inputs)[0], np.sqrt(r[0]))


def test_draws_belong_to_the_row_and_not_to_the_others() -> None:
    r = RNG.uniform(0, 1, (300, 6))
    for sampler in SAMPLERS:
        inputs = inputs_of(r)
        order = RNG.permutation(300)
        shuffled = SamplerInput(inputs.kept, r[order], None, None, inputs.wanted, HASH[order])
        found, expected = draw(sampler, shuffled), draw(sampler, inputs)
        for name in ("mask", "weight", "base_weight", "used", "confidence", "exact"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)[order])


def test_enumeration_is_the_exact_mixture_of_all_subsets() -> None:
    r = np.array([[0.25, 0.64, 0.16, 1.0]])
    paths = draw(Exact(), inputs_of(r))
    found = {tuple(m.tolist()): w for m, w in zip(paths.mask[0], paths.weight[0], strict=True) if w > 0}
    found[True, True, True, True] = paths.base_weight[0]
    assert sum(found.values()) == pytest.approx(1.0)
    for kept in itertools.product((True, False), repeat=3):
        chance = np.prod([k if here else 1 - k for k, here in zip((0.5, 0.8, 0.4), kept, strict=True)])
        assert found[(*kept, True)] == pytest.approx(chance)
    assert paths.used[0] == 7 and paths.exact[0]


@pytest.mark.parametrize("most", [2, 3, 4, 6, 7, 8])
def test_enumeration_keeps_to_the_largest_number_of_paths(most: int) -> None:
    """Three uncertain fields have seven subsets, two have three, one has one; too many are sampled instead."""
    r = np.array([[0.1, 0.4, 0.7, 1.0], [0.1, 0.4, 1.0, 1.0], [0.1, 1.0, 1.0, 1.0], [0.1, 0.1, 0.1, 0.1]])
    inputs = inputs_of(r, wanted=most // 2 * 2)
    paths, drawn = (draw(sampler, inputs, most) for sampler in (Exact(), Bernoulli()))
    assert (paths.used <= most).all()
    assert paths.mask.shape[1] == paths.weight.shape[1] == most
    sizes = (7, 3, 1, 99)
    assert paths.exact.tolist() == [size <= most for size in sizes]
    for row, size in enumerate(sizes):
        if size <= most:
            assert paths.used[row] == size
        else:
            assert paths.used[row] == drawn.used[row]
            assert np.array_equal(paths.weight[row, : drawn.weight.shape[1]], drawn.weight[row])


def test_enumeration_leaves_filtered_and_well_supported_fields_alone() -> None:
    r = np.tile([0.1, 0.4, 0.7, 0.96], (5, 1))
    kept = np.tile([False, True, True, True], (5, 1))
    paths = draw(Exact(), inputs_of(r, kept=kept))
    assert (paths.used == 3).all()
    assert not paths.mask[:, :, 0].any() and paths.mask[:, :3, 3].all()
    assert (paths.weight == paths.weight[0]).all()  # no draw is in it


def test_a_row_without_doubt_costs_nothing(big: wide.Wide) -> None:
    counts = quantise(np.full(sum(wide.SIZES), 10**6))
    sure = Reliability(counts, np.zeros(13), wide.SIZES, big.reliability.protected)
    batch = big.batch(slice(0, 50))
    for config in (but(UTTSI, trigger=Always()), but(EXACT, trigger=Always())):
        scored = Engine(big.model, sure, but(config, base=Plain()), wide.CALIBRATION).score(batch)
        assert scored.path_rows == 0 and not scored.capped
        assert np.array_equal(scored.logit, big.engine(TestTimeConfig()).score(batch).logit)


def test_an_enumerated_score_is_the_expectation_over_all_masks(big: wide.Wide) -> None:
    """Against brute force: every subset of the uncertain fields scored on its own, weighed by its probability."""
    config = but(EXACT, trigger=Always(), shrink=False, base=Plain())
    engine = big.engine(config)
    raw = engine.raw(big.batch(slice(0, 300)))
    r = big.reliability.of(big.later.ids[:300])[:, : wide.OPEN]
    keep = np.maximum(np.sqrt(r), KEEP_MIN)
    few = np.flatnonzero(((keep < 0.95).sum(axis=1) <= 3) & ((keep < 0.95).sum(axis=1) > 0))
    assert len(few) > 20
    for row in few[:20]:
        z = 0.0
        uncertain = np.flatnonzero(keep[row] < 0.95)
        for kept in itertools.product((True, False), repeat=len(uncertain)):
            mask = np.ones((1, 1, 13), np.float32)
            mask[0, 0, uncertain] = kept
            chance = np.prod(np.where(kept, keep[row, uncertain], 1 - keep[row, uncertain]))
            z += chance * big.score(row, mask)
        assert raw.z[row] == pytest.approx(z, abs=2e-6)
        assert raw.num_paths[row] == 2 ** len(uncertain)
