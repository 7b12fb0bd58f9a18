"""Each trigger's law, and the two numbers that triggers read."""

from __future__ import annotations

import numpy as np
import pytest

from tests.testtime import wide
from tests.testtime.wide import MEMBERS, UTTSI, but
from thinktwice.testtime.calibrate import apply, sigmoid
from thinktwice.testtime.config import TriggerKind
from thinktwice.testtime.engine import _depth
from thinktwice.testtime.support import entropy, missing_support
from thinktwice.testtime.triggers import TRIGGERS, BasePass, Selection

RNG = np.random.default_rng(0)
HASH = RNG.integers(0, 2**63, 20_000).astype(np.uint64)


def mark(
    kind: TriggerKind,
    *,
    missing: np.ndarray | None = None,
    bits: np.ndarray | None = None,
    logit: np.ndarray | None = None,
    row_hash: np.ndarray = HASH,
    top_k: int | None = None,
    **settings: object,
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
    found = TRIGGERS[kind](but(MEMBERS, trigger=kind, **settings), seen)
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
    found = mark("dual", missing=missing, bits=bits, threshold=0.2, entropy_floor=0.5)
    assert found.escalate.tolist() == [False, False, True, True]
    np.testing.assert_allclose(found.signal, missing * (0.5 + 0.5 * bits))
    assert mark("dual", missing=missing, bits=bits, threshold=0.2, entropy_floor=0.0).escalate.tolist() == [0, 0, 0, 1]


def test_entropy_marks_open_scores_whatever_their_support() -> None:
    bits = np.array([0.2, 0.9, 0.9001])
    for missing in (np.zeros(3), np.ones(3)):
        found = mark("entropy", missing=missing, bits=bits, threshold=0.9)
        assert found.escalate.tolist() == [False, False, True]
        assert np.array_equal(found.signal, bits)


def test_never_and_always() -> None:
    assert not mark("never", bits=np.ones(5)).escalate.any()
    assert mark("always", bits=np.zeros(5)).escalate.all()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_random_has_the_asked_rate_and_knows_nothing_of_the_row(share: float) -> None:
    bits = RNG.random(20_000)
    found = mark("random", bits=bits, missing=bits, threshold=1 - share)
    assert found.escalate.mean() == pytest.approx(share, abs=0.01)
    assert np.corrcoef(found.signal, bits)[0, 1] == pytest.approx(0, abs=0.02)
    assert np.array_equal(mark("random", threshold=1 - share).escalate, found.escalate)


@pytest.mark.parametrize(("share", "rows"), [(0.2, 10), (0.2, 14), (0.2, 4), (1.0, 9), (0.0, 9), (0.33, 300)])
def test_budget_marks_a_whole_number_of_rows_and_the_most_open_ones(share: float, rows: int) -> None:
    bits = RNG.random(rows)
    found = mark("budget", bits=bits, share=share)
    assert found.escalate.sum() == int(share * rows)
    if 0 < found.escalate.sum() < rows:
        assert bits[found.escalate].min() > bits[~found.escalate].max()


def test_budget_breaks_ties_by_content_and_not_by_place() -> None:
    bits, order = np.full(50, 0.5), RNG.permutation(50)
    found = mark("budget", bits=bits, share=0.3).escalate
    shuffled = mark("budget", bits=bits, row_hash=HASH[:50][order], share=0.3).escalate
    assert np.array_equal(shuffled, found[order])


def test_decision_marks_exactly_the_rows_whose_interval_holds_the_cut() -> None:
    logit, missing, bits = RNG.normal(0, 1, 200), RNG.random(200), RNG.random(200)
    found = mark("decision", logit=logit, missing=missing, bits=bits, top_k=20, spread=(0.01, 0.05, 0.02))
    cut = np.sort(logit)[::-1][19]
    reach = 2 * (0.01 + 0.05 * missing + 0.02 * bits)
    assert np.array_equal(found.escalate, (logit - reach <= cut) & (cut <= logit + reach))
    assert 1 < found.escalate.sum() < 100
    assert found.escalate[logit == cut].all()


def test_decision_asks_nobody_when_every_row_has_a_place_or_nothing_would_move() -> None:
    logit, spread = RNG.normal(0, 1, 10), (5.0, 0.0, 0.0)
    assert not mark("decision", logit=logit, top_k=10, spread=spread).escalate.any()
    assert not mark("decision", logit=logit, top_k=11, spread=spread).escalate.any()
    assert mark("decision", logit=logit, top_k=9, spread=spread).escalate.all()
    assert not mark("decision", logit=logit, top_k=5, spread=(0.0, 0.0, 0.0)).escalate.any()
    assert not mark("decision", logit=logit, top_k=5, spread=(-1.0, 0.0, 0.0)).escalate.any()


def test_the_places_of_the_request_win_over_the_configured_ones(big: wide.Wide) -> None:
    config = but(MEMBERS, trigger="decision", top_k=5, spread=(0.05, 0.0, 0.0))
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
    assert np.array_equal(raw.escalated, raw.signal > MEMBERS.threshold)


@pytest.mark.parametrize("most", [2, 5, 8])
def test_depth_grows_with_the_signal_in_even_steps(most: int) -> None:
    config = but(UTTSI, threshold=0.2, signal_max=0.6, max_paths=most)
    signal = np.array([0.21, 0.3, 0.35, 0.45, 0.6, 0.9])
    expected = {2: [2] * 6, 5: [2, 2, 2, 4, 4, 4], 8: [2, 2, 4, 6, 8, 8]}[most]
    assert _depth(config, signal).tolist() == expected
    for kind in ("always", "budget", "decision"):
        assert set(_depth(but(config, trigger=kind), signal).tolist()) == {most // 2 * 2}
