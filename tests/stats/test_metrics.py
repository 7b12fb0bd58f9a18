"""Fast metrics against slow ones that are plainly right, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score, roc_curve

from thinktwice.stats import metrics


def slow_auc(label: np.ndarray, score: np.ndarray) -> float:
    """Count every pair; a tie is half a win."""
    wins = [(p > n) + 0.5 * (p == n) for p in score[label == 1] for n in score[label == 0]]
    return float(np.mean(wins)) if wins else float("nan")


def slow_gauc(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> float:
    total, weight = 0.0, 0
    for g in np.unique(group):
        rows = group == g
        value = slow_auc(label[rows], score[rows])
        if not np.isnan(value):
            total += value * rows.sum()
            weight += rows.sum()
    return total / weight if weight else float("nan")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_auc_and_gauc_equal_counting_pairs(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(2, 150))
    label = (rng.random(rows) < 0.4).astype(float)
    score = rng.integers(0, levels, rows) / levels
    group = rng.integers(0, 12, rows)
    assert metrics.auc(label, score) == pytest.approx(slow_auc(label, score), nan_ok=True)
    assert metrics.gauc(label, score, group) == pytest.approx(slow_gauc(label, score, group), nan_ok=True)


def test_gauc_of_users_with_one_class_only_is_not_defined() -> None:
    assert np.isnan(metrics.gauc(np.array([1.0, 1.0, 0.0]), np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1])))
    assert np.isnan(metrics.auc(np.ones(5), np.arange(5.0)))


def test_auc_and_logloss_equal_sklearn() -> None:
    rng = np.random.default_rng(0)
    label, logit = (rng.random(3000) < 0.3).astype(float), rng.normal(0, 2, 3000).round(1)
    assert metrics.auc(label, logit) == pytest.approx(roc_auc_score(label, logit), abs=1e-12)
    assert metrics.logloss(label, logit) == pytest.approx(log_loss(label, 1 / (1 + np.exp(-logit))), abs=1e-12)


ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-3, 3) | st.floats(-1e300, 1e300), st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(ROWS)
def test_auc_of_all_rows_and_of_groups_equals_scipy(rows: list[tuple[int, float, int]]) -> None:
    """Ties, one class, one row and empty groups among them."""
    label, score, group = (np.array(column, float) for column in zip(*rows, strict=True))

    def oracle(use: np.ndarray) -> float:
        clicks, others = score[use & (label == 1)], score[use & (label == 0)]
        if not len(clicks) or not len(others):
            return float("nan")
        return float(stats.mannwhitneyu(clicks, others, method="asymptotic").statistic) / len(clicks) / len(others)

    assert metrics.auc(label, score) == pytest.approx(oracle(np.full(len(rows), True)), abs=1e-12, nan_ok=True)
    area, size = metrics.group_auc(label, score, group.astype(int))
    for g in range(len(area)):
        assert size[g] == (group == g).sum()
        assert area[g] == pytest.approx(oracle(group == g), abs=1e-12, nan_ok=True)
    if (use := ~np.isnan(area)).any():
        assert metrics.gauc(label, score, group.astype(int)) == pytest.approx(np.average(area[use], weights=size[use]))


def test_logloss_of_extreme_logits_is_finite() -> None:
    assert metrics.logloss(np.array([0.0, 1.0]), np.array([900.0, -900.0])) == 900.0


def test_ece_is_the_mean_gap_of_equal_bins() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(1500)
    label = (rng.random(1500) < p).astype(float)
    order = np.argsort(p)
    slow = np.mean([abs((p[b] - label[b]).mean()) for b in np.split(order, 15)])
    assert metrics.ece(label, p) == pytest.approx(slow)
    assert metrics.ece(label, p) < 0.06
    assert metrics.ece(label, np.full(1500, 0.9)) == pytest.approx(abs(0.9 - label.mean()))  # ties share a bin
    curve = metrics.reliability_curve(label, p)
    assert len(curve) == 15
    assert sum(b["rows"] for b in curve) == 1500
    assert [b["predicted"] for b in curve] == sorted(b["predicted"] for b in curve)


def test_calibration_ratio() -> None:
    assert metrics.calibration_ratio(np.array([1.0, 0.0, 1.0]), np.array([0.5, 0.5, 0.5])) == 0.75
    assert np.isnan(metrics.calibration_ratio(np.zeros(2), np.ones(2)))


def test_roc_points_lie_on_the_curve_and_are_few() -> None:
    rng = np.random.default_rng(2)
    label, p = (rng.random(5000) < 0.2).astype(float), rng.random(5000).round(3)
    points = np.array(metrics.roc_points(label, p))
    assert len(points) <= 200
    assert np.isfinite(points).all()
    assert points.min() >= 0
    assert points.max() <= 1
    assert points[0].tolist() == [0, 0, 1]
    assert points[-1][:2].tolist() == [1, 1]
    assert (np.diff(points[:, 2]) <= 0).all()
    false, true, threshold = roc_curve(label, p, drop_intermediate=False)
    known = {round(t, 9): (f, r) for f, r, t in zip(false, true, threshold, strict=True)}
    for f, r, t in points[1:]:
        assert known[round(t, 9)] == pytest.approx((f, r))
    assert metrics.roc_points(np.ones(4), np.ones(4)) == []
    assert len(metrics.roc_points(np.array([0.0, 1.0]), np.array([0.5, 0.5]))) == 2
