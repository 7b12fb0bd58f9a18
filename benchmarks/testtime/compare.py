"""Differences with intervals from the scores of several seeds: paired within a seed, then over seeds.

On simulated logs a row's loss is its expected logloss under the true click probability, without label noise; on other logs it
is the logloss of the label. AUC always uses the labels. Losses of a method that draws paths are first averaged over its path
seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.testtime.study import Scores
from thinktwice.stats.metrics import ece, row_logloss
from thinktwice.stats.seeds import minimum_detectable, over_seeds, p_over_seeds
from thinktwice.stats.significance import Interval, auc_influence, clustered_error, clusters_of
from thinktwice.testtime.calibrate import sigmoid


@dataclass(frozen=True)
class Rows:
    """The test rows of a data set, [R] each; ``truth`` only on simulated logs."""

    label: np.ndarray
    user: np.ndarray
    truth: np.ndarray | None
    slices: dict[str, np.ndarray]

    @cached_property
    def cluster(self) -> np.ndarray:
        return clusters_of(self.user)

    @property
    def target(self) -> np.ndarray:
        return self.label if self.truth is None else self.truth


@dataclass(frozen=True)
class Difference:
    """Mean difference over seeds with its interval, p-value, standard error within a seed and the value of every seed."""

    interval: Interval
    p: float
    within_se: float
    seeds: list[float]
    path_sd: float  # between path seeds, mean over training seeds; 0 if nothing is drawn

    def to_json(self) -> dict[str, object]:
        least = (
            minimum_detectable(self.within_se, float(np.std(self.seeds, ddof=1)), len(self.seeds))
            if len(self.seeds) > 1
            else None
        )
        return self.interval.to_json() | {
            "p": self.p,
            "seeds": self.seeds,
            "path_sd": self.path_sd,
            "minimum_detectable": least,
        }


def salts_of(scores: Scores, method: str) -> list[str]:
    """The stored names of a method: itself, or one per path seed."""
    return [method] if method in scores.logits else sorted(n for n in scores.logits if n.startswith(f"{method}@"))


def methods_of(scores: Scores) -> list[str]:
    """All methods of a run in the order of scoring, path seeds merged."""
    return list(dict.fromkeys(name.split("@")[0] for name in scores.facts["passes"]))


def passes_of(runs: list[Scores], method: str) -> float:
    """Mean forward passes per test row."""
    return float(np.mean([run.facts["passes"][n] for run in runs for n in salts_of(run, method)]))


class Compared:
    """Row losses and AUC influences of the runs of one data set, backbone and regime, computed once each."""

    def __init__(self, rows: Rows, runs: list[Scores]) -> None:
        self.rows, self.runs = rows, runs
        self._losses: dict[tuple[int, str], np.ndarray] = {}
        self._areas: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}

    def losses(self, seed: int, method: str) -> np.ndarray:
        """Row losses per path seed, [S, R]."""
        key = seed, method
        if key not in self._losses:
            run = self.runs[seed]
            names = salts_of(run, method)
            self._losses[key] = np.stack([row_logloss(self.rows.target, run.logits[n]) for n in names])
        return self._losses[key]

    def areas(self, seed: int, method: str) -> tuple[np.ndarray, np.ndarray]:
        """AUC per path seed [S] and the influence of every row on their mean [R]."""
        key = seed, method
        if key not in self._areas:
            run = self.runs[seed]
            area_and_influence = [auc_influence(self.rows.label, run.logits[n]) for n in salts_of(run, method)]
            self._areas[key] = (
                np.array([a for a, _ in area_and_influence]),
                np.mean([i for _, i in area_and_influence], axis=0),
            )
        return self._areas[key]

    def logloss(self, method: str, against: str, mask: np.ndarray | None = None) -> Difference:
        """Logloss of ``method`` minus that of ``against``."""
        chosen = np.ones(len(self.rows.label), bool) if mask is None else mask
        cluster = clusters_of(self.rows.user[chosen])
        values, errors, spread = [], [], []
        for seed in range(len(self.runs)):
            first, second = self.losses(seed, method)[:, chosen], self.losses(seed, against)[:, chosen]
            change = first.mean(axis=0) - second.mean(axis=0)
            values.append(float(change.mean()))
            errors.append(clustered_error((change - change.mean()) / len(change), cluster))
            spread.append(float(first.mean(axis=1).std(ddof=1)) if len(first) > 1 else 0.0)
        return _over(values, errors, spread)

    def auc(self, method: str, against: str) -> Difference:
        """AUC of ``method`` minus that of ``against``."""
        values, errors, spread = [], [], []
        for seed in range(len(self.runs)):
            (a, inf_a), (b, inf_b) = self.areas(seed, method), self.areas(seed, against)
            values.append(float(a.mean() - b.mean()))
            errors.append(clustered_error(inf_a - inf_b, self.rows.cluster))
            spread.append(float(a.std(ddof=1)) if len(a) > 1 else 0.0)
        return _over(values, errors, spread)

    def level(self, method: str) -> dict[str, float]:
        """AUC, logloss (expected, if the truth is known), ECE and distance to the truth, mean over seeds."""
        out: dict[str, list[float]] = {"auc": [], "logloss": [], "ece": []}
        if self.rows.truth is not None:
            out["truth_distance"] = []
        for seed, run in enumerate(self.runs):
            out["auc"].append(float(self.areas(seed, method)[0].mean()))
            out["logloss"].append(float(self.losses(seed, method).mean()))
            probability = [sigmoid(run.logits[n].astype(np.float64)) for n in salts_of(run, method)]
            out["ece"].append(float(np.mean([ece(self.rows.label, p) for p in probability])))
            if self.rows.truth is not None:
                out["truth_distance"].append(float(np.mean([np.abs(p - self.rows.truth).mean() for p in probability])))
        return {name: float(np.mean(values)) for name, values in out.items()}


def _over(values: list[float], errors: list[float], spread: list[float]) -> Difference:
    interval = over_seeds(np.array(values), np.array(errors))
    return Difference(
        interval,
        p_over_seeds(np.array(values), np.array(errors)),
        float(np.sqrt(np.mean(np.square(errors)))),
        values,
        float(np.mean(spread)),
    )
