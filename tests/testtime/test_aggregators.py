"""One logit from many passes."""

from __future__ import annotations

import numpy as np
import pytest

from thinktwice.testtime.aggregators import Confidence, Consistency, Mean, Passes, weighted_median

AGGREGATORS = {"mean": Mean(), "consistency": Consistency(), "confidence": Confidence()}

Z = np.array([[0.0, 0.1, -0.1, 5.0]])
WEIGHT = np.array([[2.0, 1.0, 1.0, 1.0]])
ONES = np.ones((1, 4))


def combine(
    kind: str,
    z: np.ndarray = Z,
    weight: np.ndarray = WEIGHT,
    support: np.ndarray = ONES,
    confidence: np.ndarray = ONES,
) -> float:
    return float(AGGREGATORS[kind].combine(Passes(z, weight, support, confidence))[0])


def test_weighted_median_equals_the_median_of_repeated_values() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        value, weight = rng.normal(0, 1, 6), rng.integers(0, 4, 6).astype(float)
        if weight.sum() > 0:
            expected = np.median(np.repeat(value, weight.astype(int)))
            assert weighted_median(value[None], weight[None])[0] == pytest.approx(expected)


def test_mean() -> None:
    assert combine("mean") == pytest.approx(1.0)
    assert weighted_median(Z, WEIGHT)[0] == pytest.approx(0.0)


def test_consistency_shuts_out_a_stray_path_and_listens_to_support() -> None:
    assert abs(combine("consistency")) < 0.05
    assert combine("consistency", support=np.array([[0.1, 1.0, 0.1, 0.1]])) > combine("consistency")
    agreed = np.array([[0.0, 0.0, 0.0, 0.02]])
    assert combine("consistency", agreed) == pytest.approx(
        0.02 * np.exp(-0.08) / (4 + np.exp(-0.08))
    )  # never too narrow


def test_confidence_weighs_by_it_and_the_base_pass_by_its_draws() -> None:
    z, told = np.array([[9.0, 1.0, 2.0]]), np.array([[1.0, 0.8, 0.2]])
    assert combine("confidence", z, np.array([[0.0, 1.0, 1.0]]), ONES[:, :3], told) == pytest.approx(1.2)
    assert combine("confidence", z, np.array([[0.0, 1.0, 4.0]]), ONES[:, :3], told) == pytest.approx(1.5)
    once = combine("confidence", z, np.array([[1.0, 1.0, 1.0]]), ONES[:, :3], np.array([[0.5, 0.5, 0.5]]))
    assert once == pytest.approx(4.0)
    assert combine("confidence", z, np.array([[0.0, 1.0, 1.0]]), ONES[:, :3], np.zeros((1, 3))) == 9.0


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_padding_counts_for_nothing_and_equal_passes_change_nothing(kind: str) -> None:
    padded = (np.c_[Z, [[99.0]]], np.c_[WEIGHT, [[0.0]]], np.ones((1, 5)), np.ones((1, 5)))
    assert combine(kind, *padded) == pytest.approx(combine(kind))
    assert combine(kind, np.full((1, 4), 0.7)) == pytest.approx(0.7)
    assert combine(kind, Z, np.array([[1.0, 0.0, 0.0, 0.0]])) == 0.0
