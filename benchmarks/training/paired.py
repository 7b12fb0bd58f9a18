"""Differences on the same test rows, with intervals that are clustered by user and include the spread between seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from thinktwice.stats.metrics import row_logloss
from thinktwice.stats.seeds import over_seeds, p_over_seeds
from thinktwice.stats.significance import auc_influence, clustered_error, clusters_of

Difference = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Label [R] and cluster [R] of the rows that all scores of a comparison belong to."""

    label: np.ndarray
    cluster: np.ndarray

    @staticmethod
    def of(label: np.ndarray, user: np.ndarray) -> Rows:
        return Rows(label.astype(np.float64), clusters_of(user))

    def take(self, rows: np.ndarray) -> Rows:
        """The rows at ``rows`` (positions, or bool)."""
        return Rows(self.label[rows], np.unique(self.cluster[rows], return_inverse=True)[1].astype(np.int64))

    def auc(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Difference:
        """AUC of the first scores minus that of the second, mean over the pairs, one of each seed."""
        values, errors = [], []
        for first, second in pairs:
            area_a, influence_a = auc_influence(self.label, first)
            area_b, influence_b = auc_influence(self.label, second)
            values.append(area_a - area_b)
            errors.append(clustered_error(influence_a - influence_b, self.cluster))
        return _over(values, errors)

    def logloss(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Difference:
        """Logloss of the first calibrated logits minus that of the second."""
        values, errors = [], []
        for first, second in pairs:
            change = row_logloss(self.label, first) - row_logloss(self.label, second)
            values.append(float(change.mean()))
            errors.append(clustered_error((change - change.mean()) / len(change), self.cluster))
        return _over(values, errors)


def _over(values: list[float], errors: list[float]) -> Difference:
    numbers, spread = np.array(values, np.float64), np.array(errors, np.float64)
    interval = over_seeds(numbers, spread).to_json()
    return interval | {"p": p_over_seeds(numbers, spread), "seeds": len(values)}
