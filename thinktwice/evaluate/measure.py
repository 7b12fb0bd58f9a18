"""The numbers of an evaluation: several columns of scores (models) on the same test rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thinktwice.evaluate.evaluation import (
    CalibrationBin,
    ColumnMetrics,
    Cost,
    Difference,
    MeasuredColumn,
    Measures,
    OperatingPoint,
    Slice,
    SliceColumn,
)
from thinktwice.stats import metrics, significance
from thinktwice.stats.significance import clusters_of
from thinktwice.versioned import MeasuredInterval


@dataclass(frozen=True)
class ScoreColumn:
    """Scores of one model on R test rows: log-odds and probability [R], forward passes per row."""

    key: str
    label: str
    logit: np.ndarray
    probability: np.ndarray
    passes: float = 1.0


def measure(
    label: np.ndarray,
    user: np.ndarray,
    columns: list[ScoreColumn],
    slices: dict[str, np.ndarray],
    scenarios: dict[str, np.ndarray],
    deciles: list[tuple[str, np.ndarray]],
    truth: np.ndarray | None = None,
) -> Measures:
    """Metrics per column, paired differences between columns, slices and calibration.

    Args:
        label: [R] 0 or 1.
        user: [R] user hash, -1 for none; the rows of one user are one cluster in every interval.
        columns: the first is the baseline of the others; the last is compared with every other.
        slices: name -> mask [R], by occurrence in training.
        scenarios: name -> mask [R], by place of the impression.
        deciles: (name, mask [R]) in order of support.
        truth: [R] true click probability, if the log has it.
    """
    cluster = clusters_of(user)
    keys = [c.key for c in columns]
    pairs = [(keys[0], k) for k in keys[1:]] + [(k, keys[-1]) for k in keys[1:-1]]
    boot = significance.bootstrap_differences(
        label, {c.key: c.logit for c in columns}, {c.key: c.probability for c in columns}, cluster, pairs
    )
    by_key = {c.key: c for c in columns}
    differences = []
    for first, second in pairs:
        differences_of = {"auc": significance.paired_auc(label, by_key[first].logit, by_key[second].logit, cluster)}
        differences_of |= boot[first, second]
        differences += [
            Difference.of(value, column=second, against=first, metric=metric)
            for metric, value in differences_of.items()
            if np.isfinite(value.value)
        ]
    return Measures(
        rows=len(label),
        users=len(np.unique(user[user >= 0])),
        click_rate=float(label.mean()),
        columns=tuple(_column(c, label, cluster, truth) for c in columns),
        differences=tuple(differences),
        slices=tuple(_slice(name, mask, label, cluster, columns) for name, mask in slices.items()),
        scenarios=tuple(_slice(name, mask, label, cluster, columns) for name, mask in scenarios.items()),
        deciles=tuple(_slice(name, mask, label, cluster, columns) for name, mask in deciles),
    )


def _column(column: ScoreColumn, label: np.ndarray, cluster: np.ndarray, truth: np.ndarray | None) -> MeasuredColumn:
    bins = metrics.reliability_curve(label, column.probability)
    return MeasuredColumn(
        key=column.key,
        label=column.label,
        metrics=column_metrics(label, column, cluster, truth),
        cost=Cost(passes=column.passes),
        calibration=tuple(CalibrationBin.model_validate(group) for group in bins),
    )


def column_metrics(
    label: np.ndarray, column: ScoreColumn, cluster: np.ndarray, truth: np.ndarray | None
) -> ColumnMetrics:
    """All metrics of one column; None where a metric is not defined (one class, no users)."""
    p = column.probability
    out = {
        "auc": metrics.auc(label, column.logit),
        "logloss": metrics.logloss(label, column.logit),
        "gauc": metrics.gauc(label, column.logit, cluster),
        "ece": metrics.ece(label, p),
        "calibration_ratio": metrics.calibration_ratio(label, p),
    }
    if truth is not None:
        q = np.clip(truth, 1e-12, 1 - 1e-12)
        floor = -(q * np.log(q) + (1 - q) * np.log1p(-q))
        out["truth_distance"] = float(np.abs(p - truth).mean())
        out["truth_excess_logloss"] = float((metrics.row_logloss(truth, column.logit) - floor).mean())
    return ColumnMetrics(**{name: value if np.isfinite(value) else None for name, value in out.items()})


def operating_point(label: np.ndarray, probability: np.ndarray, threshold: float) -> OperatingPoint:
    """ROC points (at most 200, finite thresholds in [0, 1]) and the confusion counts at ``threshold``:
    rows are the label (no click, click), columns the prediction."""
    predicted = probability >= threshold
    clicked = label > 0.5
    matrix = (
        (int((~clicked & ~predicted).sum()), int((~clicked & predicted).sum())),
        (int((clicked & ~predicted).sum()), int((clicked & predicted).sum())),
    )
    points = tuple(metrics.roc_points(label, probability))
    return OperatingPoint(roc=points, threshold=threshold, confusion=matrix)


def _slice(name: str, mask: np.ndarray, label: np.ndarray, cluster: np.ndarray, columns: list[ScoreColumn]) -> Slice:
    y, codes = label[mask], clusters_of(cluster[mask])
    first_loss = metrics.row_logloss(y, columns[0].logit[mask])
    measured = {}
    for index, c in enumerate(columns):
        z = c.logit[mask]
        loss = metrics.row_logloss(y, z)
        change = significance.paired_mean(loss - first_loss, codes) if index else None
        measured[c.key] = SliceColumn(
            auc=MeasuredInterval.of(significance.auc_interval(y, z, codes)),
            logloss=float(loss.mean()),
            ece=metrics.ece(y, c.probability[mask]),
            logloss_change=None if change is None else MeasuredInterval.of(change),
        )
    return Slice(
        name=name,
        rows=int(mask.sum()),
        share=float(mask.mean()),
        click_rate=float(y.mean()),
        columns=measured,
    )
