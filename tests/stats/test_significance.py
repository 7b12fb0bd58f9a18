"""Intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from thinktwice.stats import significance as s
from thinktwice.stats.metrics import auc, ece, gauc, logloss


def slow_delong(label: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Difference of AUCs and its variance from all pairs, as DeLong, DeLong and Clarke-Pearson write it."""
    placements = []
    for z in (first, second):
        win = (z[label == 1][:, None] > z[label == 0][None]) + 0.5 * (z[label == 1][:, None] == z[label == 0][None])
        placements.append((win.mean(axis=1), win.mean(axis=0)))
    v10, v01 = placements[1][0] - placements[0][0], placements[1][1] - placements[0][1]
    return float(v10.mean()), float(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))


@pytest.mark.parametrize("levels", [5, 1000])
def test_delong_equals_all_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    label = (rng.random(400) < 0.3).astype(float)
    first = np.round((label + rng.normal(0, 1, 400)) * levels / 10)
    second = np.round((label + rng.normal(0, 1.5, 400)) * levels / 10)
    value, variance = slow_delong(label, first, second)
    found = s.paired_auc(label, first, second, np.arange(400))
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.high - found.low) / 2 / 1.966 == pytest.approx(np.sqrt(variance), rel=0.01)


def test_influence_sums_to_nothing_and_gives_the_auc() -> None:
    rng = np.random.default_rng(0)
    label, z = (rng.random(300) < 0.5).astype(float), rng.normal(0, 1, 300).round(1)
    area, influence = s.auc_influence(label, z)
    assert area == pytest.approx(auc(label, z))
    assert influence.sum() == pytest.approx(0, abs=1e-12)


def test_intervals_cover_the_truth_with_clustered_rows() -> None:
    """Rows of a user share their error: an interval that ignores this is too narrow, ours is not."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(300):
        user = rng.integers(0, 60, 600)
        difference = rng.normal(0, 1, 60)[user] + rng.normal(0, 0.3, 600)
        found = s.paired_mean(difference, s.clusters_of(user))
        covered += found.low <= 0 <= found.high
        alone = s.paired_mean(difference, np.arange(600))
        naive += alone.low <= 0 <= alone.high
    assert 0.91 <= covered / 300 <= 0.985
    assert naive / 300 < 0.7


def test_paired_auc_interval_covers_zero_for_equal_models() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        label = (rng.random(300) < 0.4).astype(float)
        signal = label + rng.normal(0, 1, 300)
        first, second = signal + rng.normal(0, 0.5, 300), signal + rng.normal(0, 0.5, 300)
        found = s.paired_auc(label, first, second, np.arange(300))
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_clusters_of_rows_without_a_user_are_single_rows() -> None:
    codes = s.clusters_of(np.array([7, -1, 7, -1, 9]))
    assert codes[0] == codes[2]
    assert len(set(codes.tolist())) == 4
    assert sorted(set(codes.tolist())) == [0, 1, 2, 3]
    assert len(set(s.clusters_of(np.full(5, -1)).tolist())) == 5


def test_bootstrap_agrees_with_the_metrics_and_with_the_closed_form() -> None:
    rng = np.random.default_rng(5)
    rows = 3000
    user = rng.integers(0, 200, rows)
    label = (rng.random(rows) < 0.3).astype(float)
    first, second = label * 0.5 + rng.normal(-1, 1, rows), label * 0.9 + rng.normal(-1, 1, rows)
    p = {"a": 1 / (1 + np.exp(-first)), "b": 1 / (1 + np.exp(-second))}
    cluster = s.clusters_of(user)
    found = s.bootstrap_differences(label, {"a": first, "b": second}, p, cluster, [("a", "b")])["a", "b"]
    assert found["logloss"].value == pytest.approx(logloss(label, second) - logloss(label, first))
    assert found["gauc"].value == pytest.approx(gauc(label, second, cluster) - gauc(label, first, cluster))
    assert found["ece"].value == pytest.approx(ece(label, p["b"]) - ece(label, p["a"]))
    closed = s.paired_mean(np.logaddexp(0, second) - label * second - np.logaddexp(0, first) + label * first, cluster)
    assert found["logloss"].low == pytest.approx(closed.low, abs=0.1 * (closed.high - closed.low))
    assert found["logloss"].high == pytest.approx(closed.high, abs=0.1 * (closed.high - closed.low))
    assert found["gauc"].low > 0
    again = s.bootstrap_differences(label, {"a": first, "b": second}, p, cluster, [("a", "b")])["a", "b"]
    assert again == found


def test_bootstrap_leaves_out_gauc_without_users() -> None:
    rng = np.random.default_rng(6)
    label, z = (rng.random(200) < 0.5).astype(float), rng.normal(0, 1, 200)
    p = 1 / (1 + np.exp(-z))
    found = s.bootstrap_differences(label, {"a": z, "b": z}, {"a": p, "b": p}, np.arange(200), [("a", "b")])["a", "b"]
    assert set(found) == {"logloss", "ece"}
    assert found["logloss"] == s.Interval(0.0, 0.0, 0.0)


def test_one_class_gives_nan_and_one_cluster_proves_nothing() -> None:
    assert np.isnan(s.paired_auc(np.ones(5), np.arange(5.0), np.arange(5.0), np.arange(5)).value)
    alone = s.paired_mean(np.array([1.0, 1.0, 1.1]), np.zeros(3, int))
    assert not alone.significant


def test_the_clustered_error_is_that_of_the_intervals_and_of_the_cluster_means() -> None:
    rng = np.random.default_rng(8)
    user = np.repeat(np.arange(40), 5)
    difference = rng.normal(0, 1, 40)[user] + rng.normal(0, 0.5, 200)
    means = difference.reshape(40, 5).mean(axis=1)
    error = s.clustered_error((difference - difference.mean()) / 200, user)
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(40))
    label = (rng.random(200) < 0.4).astype(float)
    first, second = label + rng.normal(0, 1, 200), label + rng.normal(0, 1, 200)
    error = s.clustered_error(s.auc_influence(label, second)[1] - s.auc_influence(label, first)[1], user)
    found = s.paired_auc(label, first, second, user)
    assert (found.high - found.low) / 2 == pytest.approx(2.0227 * error, rel=1e-4)  # Student's t of 39
    assert s.clustered_error(difference, np.zeros(200, int)) == np.inf


def test_a_bootstrap_of_one_user_proves_nothing_and_of_two_warns_of_nothing() -> None:
    label, first, second = (
        np.array([0.0, 1.0, 0.0, 1.0]),
        np.array([0.0, 1.0, 1.0, 0.0]),
        np.array([-1.0, 1.0, -1.0, 1.0]),
    )
    columns = ({"a": first, "b": second}, {"a": expit(first), "b": expit(second)})
    one = s.bootstrap_differences(label, *columns, np.zeros(4, np.int64), [("a", "b")])["a", "b"]
    assert one["logloss"].value < -0.1
    assert not any(found.bounded or found.significant for found in one.values())
    two = s.bootstrap_differences(label, *columns, np.array([0, 0, 1, 1]), [("a", "b")])["a", "b"]
    assert all(found.bounded for found in two.values())  # draws without any user are left out
