"""Paths along frequent combinations: where they start, where they go, what they never do, and what they weigh."""

from __future__ import annotations

import numpy as np
import pytest

from tests.testtime import wide
from tests.testtime.wide import MATT
from thinktwice.testtime.samplers import Paths
from thinktwice.testtime.samplers.matt import Matt
from thinktwice.testtime.samplers.paths import SamplerInput

HASH = np.random.default_rng(3).integers(0, 2**63, 4000).astype(np.uint64)
ROWS, PATHS = len(HASH), 8


def draw(
    r: list[float],
    pairs: np.ndarray,
    *,
    triples: np.ndarray | None = None,
    kept: list[bool] | None = None,
    typical: float = 1.0,
) -> Paths:
    """Paths of many rows of equal support."""
    n = len(r)
    whole = np.broadcast_to(np.ones(n, bool) if kept is None else np.asarray(kept), (ROWS, n)).copy()
    inputs = SamplerInput(
        whole,
        np.tile(r, (ROWS, 1)),
        np.broadcast_to(pairs, (ROWS, n, n)).copy(),
        None if triples is None else np.broadcast_to(triples, (ROWS, n, n, n)).copy(),
        np.full(ROWS, PATHS),
        HASH,
    )
    return Matt(typical_pair=typical).draw(inputs, PATHS)


def pairs_of(n: int, value: float, **others: float) -> np.ndarray:
    """A symmetric matrix; ``f01=0.5`` sets the pair of the fields 0 and 1."""
    out = np.full((n, n), value)
    np.fill_diagonal(out, 1.0)
    for name, support in others.items():
        i, j = int(name[1]), int(name[2])
        out[i, j] = out[j, i] = support
    return out


def shares(paths: Paths, kept: np.ndarray | None = None) -> dict[tuple[bool, ...], float]:
    """Share of all draws per path, those equal to the base pass included."""
    base = tuple((np.ones(paths.mask.shape[2], bool) if kept is None else kept).tolist())
    found = {base: float(paths.base_weight.sum())}
    for mask, weight in zip(paths.mask.reshape(-1, paths.mask.shape[2]), paths.weight.reshape(-1), strict=True):
        found[tuple(mask.tolist())] = found.get(tuple(mask.tolist()), 0.0) + float(weight)
    total = sum(found.values())
    return {path: weight / total for path, weight in found.items() if weight > 0}


def test_the_first_field_is_drawn_by_the_support_of_its_value() -> None:
    """Where no combination ever came, a path is its first field alone."""
    found = shares(draw([0.1, 0.3, 0.6], np.eye(3)))
    for place, share in enumerate((0.1, 0.3, 0.6)):
        assert found[tuple(i == place for i in range(3))] == pytest.approx(share, abs=0.01)
    assert sum(found.values()) == pytest.approx(1.0)


def test_combinations_that_never_came_are_hardly_ever_taken() -> None:
    found = shares(draw([0.5, 0.5, 0.5], pairs_of(3, 0.0, f01=0.9), typical=0.9))
    together = sum(share for path, share in found.items() if path[2] and (path[0] or path[1]))
    assert together < 1e-3
    assert found[True, True, False] > 0.3


def test_a_typical_combination_is_surely_taken_and_half_of_it_half_the_time() -> None:
    assert shares(draw([0.5, 0.5], pairs_of(2, 0.4), typical=0.4)) == {(True, True): 1.0}
    found = shares(draw([0.5, 0.5], pairs_of(2, 0.2), typical=0.4))
    assert found[True, True] == pytest.approx(0.5, abs=0.01)


def test_the_next_field_is_drawn_by_the_support_of_its_combination_with_the_last_two() -> None:
    """From field 0 the draw is 3 : 1 for field 1; what is drawn first is judged by field 0 alone, the other by both."""
    pairs = pairs_of(3, 0.0, f01=0.6, f02=0.2, f12=0.8)
    paths = draw([1.0, 0.0, 0.0], pairs)
    found = shares(paths)
    first_1, first_2 = 0.75, 0.25
    after_1, after_2 = (0.2 + 0.8) / 2, (0.6 + 0.8) / 2  # support of the third with both that were taken
    expected = {
        (True, True, True): first_1 * 0.6 * after_1 + first_2 * 0.2 * after_2,
        (True, True, False): first_1 * 0.6 * (1 - after_1) + first_2 * (1 - 0.2) * 0.6,
        (True, False, True): first_2 * 0.2 * (1 - after_2) + first_1 * (1 - 0.6) * 0.2,
        (True, False, False): first_1 * (1 - 0.6) * (1 - 0.2) + first_2 * (1 - 0.2) * (1 - 0.6),
    }
    for path, share in expected.items():
        assert found[path] == pytest.approx(share, abs=0.01), path


def test_a_counted_triple_shares_the_decision_and_one_that_is_not_counted_does_not() -> None:
    pairs, never = pairs_of(3, 0.8), np.full((3, 3, 3), np.nan)
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        never[i, j, k] = 0.0
    without = shares(draw([0.5] * 3, pairs, typical=0.8))
    assert without == {(True, True, True): 1.0}
    assert shares(draw([0.5] * 3, pairs, triples=np.full((3, 3, 3), np.nan), typical=0.8)) == without
    found = shares(draw([0.5] * 3, pairs, triples=never, typical=0.8))
    assert found[True, True, True] == pytest.approx(0.5, abs=0.01)


def test_a_filtered_field_is_no_candidate() -> None:
    kept = [True, False, True]
    found = shares(draw([0.1, 0.9, 0.1], pairs_of(3, 0.9), kept=kept, typical=0.9), np.asarray(kept))
    assert found == {(True, False, True): 1.0}
    nothing = draw([0.5, 0.5], pairs_of(2, 0.9), kept=[False, False])
    assert not nothing.mask.any() and (nothing.used == 0).all()


def test_a_path_weighs_by_the_geometric_mean_of_what_it_took() -> None:
    paths = draw([1.0, 0.0, 0.0], pairs_of(3, 0.5, f01=0.2))
    told: dict[tuple[bool, ...], set[float]] = {}
    for row in range(ROWS):
        for k in range(paths.used[row]):
            told.setdefault(tuple(paths.mask[row, k].tolist()), set()).add(round(float(paths.confidence[row, k]), 9))
    assert told[True, True, False] == {0.2}
    assert told[True, False, True] == {0.5}
    either = {round(np.sqrt(0.2 * 0.5), 9), round(np.sqrt(0.5 * 0.35), 9)}
    base = set(paths.base_confidence[paths.base_weight == 1].round(9).tolist())
    assert base == either  # all three fields are the base pass: by field 1 first, or by field 2


def test_a_path_that_took_nothing_weighs_by_the_support_of_its_first_field() -> None:
    """Nothing to go on must not weigh more than the best supported combination."""
    paths = draw([0.3, 0.1], np.eye(2))
    for row in range(200):
        for k in range(paths.used[row]):
            assert paths.confidence[row, k] == pytest.approx(0.3 if paths.mask[row, k, 0] else 0.1)


def test_the_base_pass_weighs_only_as_often_as_a_path_was_it() -> None:
    paths = draw([0.5, 0.5], pairs_of(2, 0.2), typical=0.4)
    assert (paths.base_weight + paths.weight.sum(axis=1) == PATHS).all()
    assert (paths.base_weight == 0).any()


def test_an_engine_without_frequent_combinations_stays_near_its_base_pass(big: wide.Wide) -> None:
    """A row of unknown values only: no path has any weight, and the score is that of the base pass."""
    rows = big.later.take(np.arange(4))
    rows.ids[:, : wide.OPEN] = 0
    raw = big.engine(MATT).raw(rows.batch(slice(None)))
    assert np.array_equal(raw.z, raw.z0)
