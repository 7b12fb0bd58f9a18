"""A row has the same score to the last bit whatever stands beside it, whoever restarted, however many threads there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.testtime import wide
from tests.testtime.wide import but
from thinktwice.models.backends import verify_sizes
from thinktwice.models.backends.folded import Folded
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.samplers import SamplerInput
from thinktwice.testtime.samplers.exact import Exact
from thinktwice.testtime.scores import Scored
from thinktwice.testtime.triggers import Always

BY_THE_ROW = wide.MODES | wide.SHARED
EVERY = BY_THE_ROW | wide.OF_A_REQUEST
VALUES = ("logit", "probability", "uncertainty", "num_paths", "capped_rows")
ROWS = 500


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differing(found: Scored, expected: Scored, order: np.ndarray | slice) -> list[str]:
    """Values whose bits differ."""
    return [name for name in VALUES if not np.array_equal(getattr(found, name), getattr(expected, name)[order])]


def config_of(name: str) -> TestTimeConfig:
    return EVERY[name]


@pytest.fixture(scope="module")
def among(big: wide.Wide) -> dict[str, Scored]:
    """500 rows as one request, per mode; nothing may depend on which test asked first."""
    return {
        name: big.engine(config, shared=name in wide.SHARED).score(big.batch(slice(0, ROWS)))
        for name, config in EVERY.items()
    }


def test_the_modes_of_these_tests_do_something(among: dict[str, Scored]) -> None:
    for name, scored in among.items():
        assert scored.path_rows == (scored.num_paths - 1).sum()
        assert not scored.capped
        assert (scored.path_rows > 0) == (EVERY[name].second_look is not None)
        assert np.isfinite(scored.logit).all()
        for share in (scored.uncertainty, scored.probability):
            assert ((share >= 0) & (share <= 1)).all()
    logits = {name: scored.logit for name, scored in among.items()}
    for name in ("uttsi, stops", "uttsi, exact, stops"):  # nothing but what costs passes may leave a score alone
        assert not np.array_equal(logits[name], logits["off"])


@pytest.mark.parametrize("name", EVERY)
def test_in_any_order_after_a_restart_and_with_two_threads(name: str, big: wide.Wide, among: dict[str, Scored]) -> None:
    config, shared = config_of(name), name in wide.SHARED
    order = np.random.default_rng(0).permutation(ROWS)
    assert not differing(big.engine(config, shared=shared).score(big.batch(order)), among[name], order)
    with threads(2):
        assert not differing(
            big.engine(config, shared=shared).score(big.batch(slice(0, ROWS))), among[name], slice(None)
        )


@pytest.mark.parametrize("name", BY_THE_ROW)
def test_alone_or_in_any_company(name: str, big: wide.Wide, among: dict[str, Scored]) -> None:
    engine, expected = big.engine(config_of(name), shared=name in wide.SHARED), among[name]
    asked = np.flatnonzero(expected.num_paths > 1)
    for row in {0, 127, 128, 499, *range(3, ROWS, 40), *asked[:15].tolist()}:
        assert not differing(engine.score(big.batch(slice(row, row + 1))), expected, slice(row, row + 1))
    for rows in (slice(90, 133), slice(100, 400)):
        assert not differing(engine.score(big.batch(rows)), expected, rows)


@pytest.mark.parametrize("name", BY_THE_ROW)
def test_with_a_folded_first_layer(name: str, big: wide.Wide, among: dict[str, Scored]) -> None:
    engine = big.engine(config_of(name), shared=name in wide.SHARED, make_backend=Folded)
    assert verify_sizes(engine.backend)
    found, eager = engine.score(big.batch(slice(0, ROWS))), among[name]
    alike = found.num_paths == eager.num_paths  # a row at the edge of a threshold may fall on its other side
    assert alike.mean() > 0.99
    np.testing.assert_allclose(found.logit[alike], eager.logit[alike], rtol=0, atol=1e-4)
    order = np.random.default_rng(0).permutation(ROWS)
    assert not differing(engine.score(big.batch(order)), found, order)
    asked = np.flatnonzero(found.num_paths > 1)
    for row in {0, 127, 128, 499, *range(3, ROWS, 40), *asked[:15].tolist()}:
        assert not differing(engine.score(big.batch(slice(row, row + 1))), found, slice(row, row + 1))
    assert not differing(engine.score(big.batch(slice(90, 133))), found, slice(90, 133))


@pytest.mark.parametrize("triples", [True, False])
def test_matt_with_and_without_triples(triples: bool) -> None:
    small = wide.build(triples=triples, name="dcnv2")
    engine = small.engine(wide.MATT)
    among = engine.score(small.batch(slice(0, 200)))
    order = np.random.default_rng(1).permutation(200)
    assert not differing(engine.score(small.batch(order)), among, order)
    for row in range(0, 200, 11):
        assert not differing(engine.score(small.batch(slice(row, row + 1))), among, slice(row, row + 1))
    assert among.path_rows > 200


def test_triples_that_are_counted_change_paths_and_the_others_do_not(big: wide.Wide) -> None:
    """Three of 120 triples are counted: what is not counted must not count as well supported."""
    batch = big.batch(slice(0, ROWS))
    without = wide.build(triples=False).engine(wide.MATT).score(batch)
    with_them = big.engine(wide.MATT).score(batch)
    assert not np.array_equal(with_them.logit, without.logit)
    assert with_them.path_rows == pytest.approx(without.path_rows, rel=0.05)


@pytest.mark.parametrize("name", wide.OF_A_REQUEST)
def test_a_trigger_of_the_request_looks_at_the_other_rows(name: str, big: wide.Wide, among: dict[str, Scored]) -> None:
    engine = big.engine(config_of(name))
    half = engine.score(big.batch(slice(0, ROWS // 2)))
    assert not np.array_equal(half.num_paths > 1, among[name].num_paths[: ROWS // 2] > 1)
    both = (half.num_paths > 1) & (among[name].num_paths[: ROWS // 2] > 1)
    assert np.array_equal(half.logit[both], among[name].logit[: ROWS // 2][both])  # whom it asks, not what they answer


def test_probabilities_of_paths_have_the_same_bits_alone(big: wide.Wide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over fields and pairs: their order must not depend on the number of rows."""
    sampler = Exact(pair_share=0.3)
    config = but(wide.EXACT, trigger=Always(), sampler=sampler)
    seen: list[SamplerInput] = []
    draw = Exact.draw
    monkeypatch.setattr(Exact, "draw", lambda self, inputs, most: (seen.append(inputs), draw(self, inputs, most))[1])
    engine = big.engine(config)
    engine.score(big.batch(slice(0, 100)))
    among = dict(zip(seen[0].row_hash.tolist(), sampler.keep_probability(seen[0]), strict=True))
    for row in range(100):
        engine.score(big.batch(slice(row, row + 1)))
        alone = seen[-1]
        assert np.array_equal(sampler.keep_probability(alone)[0], among[int(alone.row_hash[0])])
