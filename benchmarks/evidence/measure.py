"""Differences of the methods of one log with intervals: paired, clustered by user, and over seeds.

Every score is calibrated on the earlier validation rows, and test rows only measure. A difference uses the seeds whose units of
work are done for both methods. Shapes: R test rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.evidence.data import DELAYS
from benchmarks.evidence.networks import KINDS, Networks
from benchmarks.evidence.trunks import Logits, Scores
from thinktwice.stats.metrics import logloss, row_logloss
from thinktwice.stats.multiple import holm
from thinktwice.stats.seeds import over_seeds, p_over_seeds
from thinktwice.stats.significance import auc_influence, clustered_error, clusters_of
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.train.measure import fit_calibration

METHODS = {  # kind of unit -> name
    "correction": "first look",
    "retrieval": "first and second look",
    "trees": "trees in place of the network",
    "in trunk": "counters in the trunk",
    "other counters": "control: counters of other rows",
    "fewer counters": "first look without windows",
}
TRUNK, TWO, DEFAULT = "trunk", "two trunks", "trunk with statistics of whole days"
HOUR_US = 3_600_000_000
MANY = 5  # gains of a second trunk that the first look is held against


@dataclass(frozen=True)
class Method:
    """A method, and the label delay of its evidence; empty without evidence."""

    name: str
    delay: str = ""


@dataclass(frozen=True, eq=False)
class Area:
    """AUC, and the contribution of every row to its error [R]."""

    value: float
    influence: np.ndarray


class Measured:
    """The scores of the methods of one log, measured once each."""

    def __init__(self, networks: Networks, seeds: int) -> None:
        self.networks, self.trunks, self.seeds = networks, networks.trunks, seeds
        test, fit = self.trunks.test_rows(), self.trunks.fit_rows()
        self.label, self.fit_label = test.label.astype(np.float64), fit.label
        self.cluster = clusters_of(test.user)
        hours = np.stack([self.cluster, test.time // HOUR_US])
        self.request = np.unique(hours, axis=1, return_inverse=True)[1].ravel()
        frame = self.trunks.data().rows("test")
        self.truth = frame["truth"].to_numpy() if "truth" in frame.columns else None
        self._logits: dict[tuple[Method, int], Logits | None] = {}
        self._areas: dict[tuple[Method, int], Area] = {}

    @cached_property
    def delays(self) -> list[str]:
        """Label delays at which a first look is done."""
        return [d for d in DELAYS if self.seeds_of(Method(METHODS["correction"], d))]

    def seeds_of(self, *methods: Method) -> list[int]:
        """Seeds whose units are done for all ``methods``."""
        return [s for s in range(self.seeds) if all(self.logits(m, s) is not None for m in methods)]

    def scores(self, method: Method, seed: int) -> Scores | None:
        """Logits as the method gives them."""
        kept = self.trunks.kept
        if method.name in (TRUNK, TWO, DEFAULT):
            kind = "default" if method.name == DEFAULT else "trunk"
            wanted = (seed, seed + 1) if method.name == TWO else (seed,)
            found = [kept.found(f"{kind}-scores-{s}") for s in wanted]
            if any(f is None for f in found):
                return None
            fit, test = (np.mean([f[part] for f in found if f is not None], axis=0) for part in ("fit", "test"))
            return Scores(fit, test)
        kind = next(kind for kind, name in METHODS.items() if name == method.name)
        return self.networks.found(kind, seed, method.delay)

    def logits(self, method: Method, seed: int) -> Logits | None:
        """Calibrated log-odds [R]; None if the unit of work is not done."""
        if (method, seed) not in self._logits:
            scores = self.scores(method, seed)
            self._logits[method, seed] = None if scores is None else self.calibrated(scores)
        return self._logits[method, seed]

    def _known(self, method: Method, seed: int) -> Logits:
        logit = self.logits(method, seed)
        assert logit is not None
        return logit

    def calibrated(self, scores: Scores) -> Logits:
        calibration = fit_calibration(scores.fit, self.fit_label)
        return calibration.a * scores.test + calibration.b

    def area(self, method: Method, seed: int) -> Area:
        if (method, seed) not in self._areas:
            self._areas[method, seed] = Area(*auc_influence(self.label, self._known(method, seed)))
        return self._areas[method, seed]

    def difference(self, method: Method, against: Method) -> dict[str, Any] | None:
        """AUC, logloss, and on a simulated log distance to the true probability, of ``method`` minus those of ``against``."""
        seeds = self.seeds_of(method, against)
        if not seeds:
            return None
        areas = [(self.area(method, s), self.area(against, s)) for s in seeds]
        out = {"auc": self.over([(a.value - b.value, a.influence - b.influence) for a, b in areas])}
        pairs = [(self._known(method, s), self._known(against, s)) for s in seeds]
        losses = [row_logloss(self.label, a) - row_logloss(self.label, b) for a, b in pairs]
        out["logloss"] = self.over([(d.mean(), (d - d.mean()) / len(d)) for d in losses])
        if self.truth is not None:
            distances = [np.abs(sigmoid(a) - self.truth) - np.abs(sigmoid(b) - self.truth) for a, b in pairs]
            out["truth_distance"] = self.over([(d.mean(), (d - d.mean()) / len(d)) for d in distances])
        return out

    def beyond_trunks(self, method: Method) -> dict[str, Any] | None:
        """AUC gain of ``method`` over the trunk minus :data:`MANY` times that of a second trunk, from the same users and seeds."""
        seeds = self.seeds_of(method, Method(TWO))
        if not seeds:
            return None
        values = []
        for seed in seeds:
            a, b, two = self.area(method, seed), self.area(Method(TRUNK), seed), self.area(Method(TWO), seed)
            value = a.value - b.value - MANY * (two.value - b.value)
            values.append((value, a.influence - b.influence - MANY * (two.influence - b.influence)))
        return self.over(values)

    def over(self, values: list[tuple[float, np.ndarray]]) -> dict[str, Any]:
        """Mean over seeds of (value, contributions of the rows to its error [R])."""
        numbers = np.array([value for value, _ in values], np.float64)
        errors = np.array([clustered_error(influence, self.cluster) for _, influence in values])
        interval = over_seeds(numbers, errors).to_json()
        return interval | {"p": p_over_seeds(numbers, errors), "seeds": numbers.tolist()}

    def level(self, method: Method) -> dict[str, float]:
        """AUC, logloss and distance to the true probability, mean over seeds."""
        seeds = self.seeds_of(method)
        logits = [z for s in seeds if (z := self.logits(method, s)) is not None]
        out = {
            "auc": float(np.mean([self.area(method, s).value for s in seeds])),
            "logloss": float(np.mean([logloss(self.label, z) for z in logits])),
        }
        if self.truth is not None:
            out["truth_distance"] = float(np.mean([np.abs(sigmoid(z) - self.truth).mean() for z in logits]))
        return out


def table(measured: Measured) -> dict[str, Any]:
    """Every method that is done, against the trunk scored once; Holm's correction is over all of them."""
    trunk = Method(TRUNK)
    methods = [Method(TWO), Method(DEFAULT)]
    methods += [Method(METHODS[kind], delay) for delay in DELAYS for kind in KINDS]
    rows: list[dict[str, Any]] = []
    for method in methods:
        change = measured.difference(method, trunk)
        if change is not None:
            seeds = len(measured.seeds_of(method))
            rows.append({"method": method.name, "delay": method.delay, "trained_seeds": seeds} | change)
    for metric in ("auc", "logloss"):
        for row, p in zip(rows, holm([row[metric]["p"] for row in rows]), strict=True):
            row[metric]["p_holm"] = float(p)
    info = measured.trunks.data().info
    return {
        "words": measured.trunks.log.words,
        "rows": {part: facts.rows for part, facts in info.parts.items()},
        "test_users": int(measured.cluster.max()) + 1,
        "unseen_share": info.parts["test"].unseen_share,
        "seeds": len(measured.seeds_of(trunk)),
        "trunk": measured.level(trunk) if measured.seeds_of(trunk) else None,
        "methods": rows,
        "over_default": _by_delay(measured, lambda m: measured.difference(m, Method(DEFAULT))),
        "over_two_trunks": _by_delay(measured, lambda m: measured.difference(m, Method(TWO))),
        "over_counters_in_trunk": _by_delay(
            measured, lambda m: measured.difference(m, Method(METHODS["in trunk"], m.delay))
        ),
        "without_windows_over_first_look": _by_delay(
            measured, lambda m: measured.difference(Method(METHODS["fewer counters"], m.delay), m)
        ),
        "beyond_trunks": _by_delay(measured, measured.beyond_trunks),
        "fits": [
            {"kind": METHODS[kind], "delay": delay, "seed": seed} | measured.networks.facts(kind, seed, delay)
            for kind in ("correction", "retrieval", "fewer counters")
            for delay in DELAYS
            for seed in measured.seeds_of(Method(METHODS[kind], delay))
        ],
    }


def _by_delay(measured: Measured, compare: Any) -> dict[str, Any]:
    found = {delay: compare(Method(METHODS["correction"], delay)) for delay in measured.delays}
    return {delay: value for delay, value in found.items() if value is not None}
