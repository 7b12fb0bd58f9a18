"""Each trigger's law, and the two numbers that triggers read."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from tests.testtime import wide
from tests.testtime.wide import MEMBERS, UTTSI, but
from thinktwice.testtime.aggregators import Mean
from thinktwice.testtime.calibrate import apply, sigmoid
from thinktwice.testtime.opinions.config import FeaturePaths
from thinktwice.testtime.rowhash import hash_rows
from thinktwice.testtime.support import entropy, missing_support
from thinktwice.testtime.triggers import (
    Always,
    BasePass,
    Budget,
    Decision,
    Dual,
    Entropy,
    Random,
    Selection,
    Trigger,
)

RNG = np.random.default_rng(0)
HASH = RNG.integers(0, 2**63, 20_000).astype(np.uint64)


def mark(
    trigger: Trigger,
    *,
    missing: np.ndarray | None = None,
    bits: np.ndarray | None = None,
    logit: np.ndarray | None = None,
    row_hash: np.ndarray = HASH,
    top_k: int | None = None,
) -> Selection:
    rows = next(len(v) for v in (missing, bits, logit, row_hash) if v is not None)
    zero = np.zeros(rows)
    seen = BasePass(
        zero if missing is None else missing,
        zero if bits is None else bits,
        zero if logit is None else logit,
        row_hash[:rows],
        top_k,
    )
    found = trigger.mark(seen)
    assert found.signal.shape == found.escalate.shape == (rows,)
    return found


def test_entropy_in_bits() -> None:
    np.testing.assert_allclose(entropy(np.array([0.5, 0.0, 1.0, 0.11])), [1, 0, 0, 0.49992], atol=1e-5)


def test_missing_support_weighs_open_fields_by_importance() -> None:
    r = np.array([[1.0, 1.0, 0.2], [0.0, 0.5, 0.2]])
    np.testing.assert_allclose(missing_support(r, np.array([0, 1]), ()), [0, 0.75])
    np.testing.assert_allclose(missing_support(r, np.array([0, 1]), (0.9, 0.1, 5.0)), [0, 0.95])
    assert (missing_support(r, np.array([], int), ()) == 0).all()
    assert (missing_support(r, np.array([0, 1]), (0.0, 0.0, 1.0)) == 0).all()


def test_dual_marks_thin_support_more_so_under_an_open_score() -> None:
    """The four quadrants: a well supported coin flip is label noise and is left alone."""
    missing, bits = np.array([0.02, 0.02, 0.6, 0.6]), np.array([0.1, 1.0, 0.1, 1.0])
    found = mark(Dual(threshold=0.2), missing=missing, bits=bits)
    assert found.escalate.tolist() == [False, False, True, True]
    np.testing.assert_allclose(found.signal, missing * (0.5 + 0.5 * bits))
    assert mark(Dual(threshold=0.4), missing=missing, bits=bits).escalate.tolist() == [0, 0, 0, 1]


def test_entropy_marks_open_scores_whatever_their_support() -> None:
    bits = np.array([0.2, 0.9, 0.9001])
    for missing in (np.zeros(3), np.ones(3)):
        found = mark(Entropy(threshold=0.9), missing=missing, bits=bits)
        assert found.escalate.tolist() == [False, False, True]
        assert np.array_equal(found.signal, bits)


def test_always() -> None:
    assert mark(Always(), bits=np.zeros(5)).escalate.all()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_random_has_the_asked_rate_and_knows_nothing_of_the_row(share: float) -> None:
    bits = RNG.random(20_000)
    found = mark(Random(threshold=1 - share), bits=bits, missing=bits)
    assert found.escalate.mean() == pytest.approx(share, abs=0.01)
    assert np.corrcoef(found.signal, bits)[0, 1] == pytest.approx(0, abs=0.02)
    assert np.array_equal(mark(Random(threshold=1 - share)).escalate, found.escalate)


@pytest.mark.parametrize(("share", "rows"), [(0.2, 10), (0.2, 14), (0.2, 4), (1.0, 9), (0.0, 9), (0.33, 300)])
def test_budget_marks_a_whole_number_of_rows_and_the_most_open_ones(share: float, rows: int) -> None:
    bits = RNG.random(rows)
    found = mark(Budget(share=share), bits=bits)
    assert found.escalate.sum() == int(share * rows)
    if 0 < found.escalate.sum() < rows:
        assert bits[found.escalate].min() > bits[~found.escalate].max()


def test_budget_breaks_ties_by_content_and_not_by_place() -> None:
    bits, order = np.full(50, 0.5), RNG.permutation(50)
    found = mark(Budget(share=0.3), bits=bits).escalate
    shuffled = mark(Budget(share=0.3), bits=bits, row_hash=HASH[:50][order]).escalate
    assert np.array_equal(shuffled, found[order])


def test_decision_marks_exactly_the_rows_whose_interval_holds_the_cut() -> None:
    logit, missing, bits = RNG.normal(0, 1, 200), RNG.random(200), RNG.random(200)
    found = mark(Decision(top_k=20, spread=(0.01, 0.05, 0.02)), logit=logit, missing=missing, bits=bits)
    cut = np.sort(logit)[::-1][19]
    reach = 2 * (0.01 + 0.05 * missing + 0.02 * bits)
    assert np.array_equal(found.escalate, (logit - reach <= cut) & (cut <= logit + reach))
    assert 1 < found.escalate.sum() < 100
    assert found.escalate[logit == cut].all()


def test_decision_asks_nobody_when_every_row_has_a_place_or_nothing_would_move() -> None:
    logit, spread = RNG.normal(0, 1, 10), (5.0, 0.0, 0.0)
    assert not mark(Decision(top_k=10, spread=spread), logit=logit).escalate.any()
    assert not mark(Decision(top_k=11, spread=spread), logit=logit).escalate.any()
    assert mark(Decision(top_k=9, spread=spread), logit=logit).escalate.all()
    assert not mark(Decision(top_k=5, spread=(0.0, 0.0, 0.0)), logit=logit).escalate.any()
    assert not mark(Decision(top_k=5, spread=(-1.0, 0.0, 0.0)), logit=logit).escalate.any()


def test_the_places_of_the_request_win_over_the_configured_ones(big: wide.Wide) -> None:
    config = but(MEMBERS, trigger=Decision(top_k=5, spread=(0.05, 0.0, 0.0)))
    batch = big.batch(slice(0, 200))
    engine = big.engine(config)
    logit = apply(wide.CALIBRATION, engine.raw(batch).z0)
    chosen = {}
    for asked, k in ((None, 5), (5, 5), (60, 60)):
        marked = engine.score(batch, top_k=asked).num_paths > 1
        cut = np.sort(logit)[::-1][k - 1]
        assert np.array_equal(marked, np.abs(logit - cut) <= 0.1)
        chosen[asked] = marked
    assert not np.array_equal(chosen[5], chosen[60])
    assert not (engine.score(batch, top_k=200).num_paths > 1).any()


def test_triggers_read_calibrated_scores(big: wide.Wide) -> None:
    """What looks open is decided by the probability that is answered, not by the raw logit."""
    engine, batch = big.engine(MEMBERS), big.batch(slice(0, 300))
    raw = engine.raw(batch)
    np.testing.assert_array_equal(raw.signal, entropy(sigmoid(1.3 * raw.z0 - 0.2)))
    assert np.array_equal(raw.escalated, raw.signal > 0.8)


@pytest.mark.parametrize("most", [2, 5, 8])
def test_depth_grows_with_the_signal_in_even_steps(most: int) -> None:
    paths = FeaturePaths(max_paths=most)
    signal = np.array([0.21, 0.3, 0.35, 0.45, 0.6, 0.9])
    expected = {2: [2] * 6, 5: [2, 2, 2, 4, 4, 4], 8: [2, 2, 4, 6, 8, 8]}[most]
    assert paths.wanted(Dual(threshold=0.2, signal_max=0.6).depth(signal)).tolist() == expected
    for trigger in (Always(), Budget(), Decision()):
        assert set(paths.wanted(trigger.depth(signal)).tolist()) == {most // 2 * 2}


class Shallow(Trigger):
    """Rows of an odd hash, and half of their paths: a trigger of one's own, with an option."""

    share_of_paths: float = 0.5
    reads_row_hash: ClassVar[bool] = True

    def mark(self, seen: BasePass) -> Selection:
        return Selection(np.zeros(len(seen.entropy)), seen.row_hash % np.uint64(2) == 1)

    def depth(self, signal: np.ndarray) -> np.ndarray:
        return np.full(len(signal), self.share_of_paths)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_trigger_of_your_own_brings_its_options(big: wide.Wide, share: float) -> None:
    free = but(UTTSI, aggregator=Mean(), shrink=False)
    engine, batch = big.engine(free), big.batch(slice(0, 200))
    own = engine.with_trigger(Shallow(share_of_paths=share)).score(batch)
    all_paths = big.engine(but(free, trigger=Always())).score(batch)
    odd = hash_rows(batch, 0) % np.uint64(2) == 1
    assert (own.num_paths[odd] - 1 <= 8 * share).all() and 0 < odd.sum() < 200
    assert (own.num_paths[~odd] == 1).all()
    assert np.array_equal(own.logit[odd], all_paths.logit[odd]) == (share == 1.0)
    with pytest.raises(ValueError, match="mode 'off' has no second look"):
        big.engine(wide.MODES["off"]).with_trigger(Shallow())
