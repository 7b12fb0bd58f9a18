"""The networks over evidence of the study, and the trees they are compared with, kept on disk and not fitted again.

Everything is fitted on the later blocks of the train rows and on the earlier validation rows, as in the library.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from benchmarks.evidence.kept import Kept, code_hash
from benchmarks.evidence.trunks import CODE, Logits, Scores, Trunks
from thinktwice.data.encoded import EncodedRows
from thinktwice.models.logit_network import Floats, Network
from thinktwice.selection.evidence import EvidenceFit, Retrieved, of_other_rows
from thinktwice.stats.metrics import logloss
from thinktwice.testtime.evidence.correction import CorrectionNetwork, Standard, known_rows
from thinktwice.testtime.evidence.retrieval import Neighbours, Retrieval, retrieval_inputs
from thinktwice.train.logit_network import FittedNetwork
from thinktwice.train.measure import fit_calibration

TREES = {"max_iter": 120, "learning_rate": 0.08, "max_leaf_nodes": 16, "min_samples_leaf": 100}
NETWORKS = code_hash(
    "benchmarks/evidence/networks.py",
    "thinktwice/models/logit_network.py",
    "thinktwice/selection/evidence.py",
    "thinktwice/testtime/evidence",
    "thinktwice/train/logit_network.py",
    "thinktwice/train/neighbours.py",
)
KINDS = ("correction", "retrieval", "other counters", "trees", "in trunk", "fewer counters")
RETRIEVED = ("features", "has_outcome", "fit_features", "fit_has_outcome")
# Counters of windows: the other forms say nearly the same.
WINDOWS = ("_hour", "_day", "_week")


class Networks:
    """The networks of one log."""

    def __init__(self, trunks: Trunks) -> None:
        self.trunks = trunks
        self.kept = Kept(trunks.kept.folder, f"{CODE} {NETWORKS} {trunks.kept.key}")

    def perform(self, kind: str, seed: int, delay: str) -> None:
        """One unit of work of :data:`KINDS`."""
        {
            "correction": self.correction,
            "retrieval": self.second,
            "other counters": self.other_counters,
            "trees": self.trees,
            "in trunk": self.trunks.with_counters,
            "fewer counters": self.without_windows,
        }[kind](seed, delay)

    def found(self, kind: str, seed: int, delay: str) -> Scores | None:
        """The scores of a unit of work that was done, else None."""
        if kind == "in trunk":
            arrays = self.trunks.kept.found(f"in-trunk-scores-{delay}-{seed}")
        else:
            arrays = self.kept.found(f"{kind}-{delay}-{seed}")
        return None if arrays is None else Scores(arrays["fit"], arrays["test"])

    def facts(self, kind: str, seed: int, delay: str) -> dict[str, float]:
        """What was kept of a network that was fitted: see :class:`FittedNetwork`; ``cpu_seconds`` of its fit."""
        arrays = self.kept.found(f"{kind}-{delay}-{seed}")
        assert arrays is not None
        names = ("epochs", "scale", "gain", "error", "examples", "cpu_seconds")
        return dict(zip(names, arrays["facts"].tolist(), strict=True))

    def correction(self, seed: int, delay: str) -> CorrectionNetwork:
        """The first look of a seed."""

        def compute() -> dict[str, np.ndarray]:
            start, inputs = time.process_time(), self._inputs(seed, delay)
            counters, fit_counters, test_counters = self._counters(inputs, delay)
            network, fitted = inputs.correction(counters, fit_counters)
            facts = _facts(fitted, len(counters), start)
            scores = self._scores(network, seed, fit_counters, test_counters)
            return scores | {"facts": facts} | {f"layer{n}": a for n, a in enumerate(network.network.arrays)}

        arrays = self.kept.arrays(f"correction-{delay}-{seed}", compute)
        scale = self.trunks.data(delay).counter_scale
        assert scale is not None
        standard = Standard(np.asarray(scale.means, np.float32), np.asarray(scale.sds, np.float32))
        return CorrectionNetwork(standard, Network(tuple(arrays[f"layer{n}"] for n in range(6))))

    def other_counters(self, seed: int, delay: str) -> dict[str, np.ndarray]:
        """The control: a first look fitted to and reading the counters of other rows."""

        def compute() -> dict[str, np.ndarray]:
            start, inputs = time.process_time(), self._inputs(seed, delay)
            counters = [of_other_rows(c) for c in self._counters(inputs, delay)]
            network, fitted = inputs.correction(counters[0], counters[1])
            return self._scores(network, seed, *counters[1:]) | {"facts": _facts(fitted, len(counters[0]), start)}

        return self.kept.arrays(f"other counters-{delay}-{seed}", compute)

    def without_windows(self, seed: int, delay: str) -> dict[str, np.ndarray]:
        """A first look without the counters of windows."""

        def compute() -> dict[str, np.ndarray]:
            start, inputs = time.process_time(), self._inputs(seed, delay)
            scale = self.trunks.data(delay).counter_scale
            assert scale is not None
            dropped = [n for n, name in enumerate(scale.names) if name.endswith(WINDOWS)]
            counters = [np.array(c) for c in self._counters(inputs, delay)]
            for part in counters:
                known = ~np.isnan(part)
                part[:, dropped] = np.where(known[:, dropped], np.float32(0), np.float32(np.nan))
            network, fitted = inputs.correction(counters[0], counters[1])
            return self._scores(network, seed, *counters[1:]) | {"facts": _facts(fitted, len(counters[0]), start)}

        return self.kept.arrays(f"fewer counters-{delay}-{seed}", compute)

    def trees(self, seed: int, delay: str) -> dict[str, np.ndarray]:
        """Boosted trees on the base logit and the counters, their number chosen on validation, blended with the base logit by a
        regression on validation."""

        def compute() -> dict[str, np.ndarray]:
            start, inputs = time.process_time(), self._inputs(seed, delay)
            counters, fit_counters, test_counters = self._counters(inputs, delay)
            base = self.trunks.scores(seed)
            label = inputs.rows.label[inputs.examples]
            fit, test, number = _trees(
                (inputs.logits, counters, label),
                (base.fit, fit_counters, inputs.fit.label),
                base.test,
                test_counters,
                seed,
            )
            facts = np.array([number, 1.0, 0.0, 0.0, len(label), time.process_time() - start])
            return {"fit": fit, "test": test, "facts": facts}

        return self.kept.arrays(f"trees-{delay}-{seed}", compute)

    def retrieved(self, seed: int, delay: str) -> tuple[Retrieved, Floats, np.ndarray]:
        """Neighbours and retrieved features of all rows, and those of the test rows. After a split by time they are the same for
        every seed."""
        seed = 0 if self.trunks.log.blocks == "time" else seed

        def compute() -> dict[str, np.ndarray]:
            found = self._inputs(seed, delay).retrieved()
            assert found is not None
            near = found.neighbours
            parts = {name: getattr(found, name) for name in RETRIEVED}
            parts |= {"ids": near.ids, "weights": near.weights, "rates": near.rates}
            test = self._test(delay)
            assert test.evidence is not None and test.evidence.history is not None
            history = test.evidence.history()
            assert history is not None
            features, has_outcome = near.features(self._items(test), history)
            return parts | {"test_features": features, "test_has_outcome": has_outcome}

        arrays = self.kept.arrays(f"retrieved-{delay}-{seed}", compute)
        neighbours = Neighbours(arrays["ids"], arrays["weights"], arrays["rates"])
        return (
            Retrieved(neighbours, *(arrays[n] for n in RETRIEVED)),
            arrays["test_features"],
            arrays["test_has_outcome"],
        )

    def second(self, seed: int, delay: str) -> Retrieval:
        """The second look of a seed, over its first look."""

        def compute() -> dict[str, np.ndarray]:
            start, inputs = time.process_time(), self._inputs(seed, delay)
            correction, base = self.correction(seed, delay), self.trunks.scores(seed)
            counters, fit_counters, test_counters = self._counters(inputs, delay)
            retrieved, test_features, test_has = self.retrieved(seed, delay)
            found = inputs.retrieval(correction, counters, retrieved)
            assert found is not None
            retrieval, fitted, examples = found

            def scores(logit: Logits, values: Floats, features: Floats, has: np.ndarray) -> Logits:
                known = known_rows(values, correction.num_counters)
                first = np.where(known, correction(logit, values), logit)
                read = retrieval_inputs(correction.standard, retrieval.standard, first, values, features)
                return np.where(has & known, first + retrieval.network(read), first)

            layers = {f"layer{n}": a for n, a in enumerate(retrieval.network.arrays)}
            standard = {"means": retrieval.standard.means, "sds": retrieval.standard.sds}
            return {
                "fit": scores(base.fit, fit_counters, retrieved.fit_features, retrieved.fit_has_outcome),
                "test": scores(base.test, test_counters, test_features, test_has),
                "facts": _facts(fitted, examples, start),
            } | (layers | standard)

        arrays = self.kept.arrays(f"retrieval-{delay}-{seed}", compute)
        network = Network(tuple(arrays[f"layer{n}"] for n in range(6)))
        return Retrieval(self.retrieved(seed, delay)[0].neighbours, Standard(arrays["means"], arrays["sds"]), network)

    def _test(self, delay: str) -> EncodedRows:
        return self.trunks.data(delay).part_with_evidence("test")

    def _items(self, rows: EncodedRows) -> np.ndarray:
        data = self.trunks.data()
        column = data.encoder.column_of(data.schema.key_of("item"))
        assert column is not None
        return rows.ids[:, column].astype(np.int64)

    def _inputs(self, seed: int, delay: str) -> EvidenceFit:
        data = self.trunks.data(delay)
        valid = data.part_with_evidence("valid")
        blocks, base = self.trunks.blocks(seed), self.trunks.scores(seed)
        rows, training = data.part_with_evidence("train"), self.trunks.trunk(seed).training
        assert training is not None
        return EvidenceFit(data, rows, valid, np.arange(len(valid)), training, blocks, base.fit)

    def _counters(self, inputs: EvidenceFit, delay: str) -> tuple[Floats, Floats, Floats]:
        test = self._test(delay)
        assert inputs.rows.evidence is not None and inputs.fit.evidence is not None and test.evidence is not None
        return (
            np.asarray(inputs.rows.evidence.counters[inputs.examples]),
            np.asarray(inputs.fit.evidence.counters),
            np.asarray(test.evidence.counters),
        )

    def _scores(
        self, network: CorrectionNetwork, seed: int, fit_counters: Floats, test_counters: Floats
    ) -> dict[str, np.ndarray]:
        base, width = self.trunks.scores(seed), network.num_counters
        return {
            "fit": np.where(known_rows(fit_counters, width), network(base.fit, fit_counters), base.fit),
            "test": np.where(known_rows(test_counters, width), network(base.test, test_counters), base.test),
        }


def networks_of(name: str, work: Path) -> Networks:
    return Networks(Trunks(name, work))


def _facts(fitted: FittedNetwork, examples: int, start: float) -> np.ndarray:
    seconds = time.process_time() - start
    return np.array([fitted.epochs, fitted.scale, fitted.gain, fitted.error, examples, seconds])


def _trees(
    train: tuple[Logits, Floats, np.ndarray],
    fit: tuple[Logits, Floats, np.ndarray],
    base: Logits,
    counters: Floats,
    seed: int,
) -> tuple[Logits, Logits, int]:
    """Logits of the validation and of the test rows, and the number of trees."""

    def inputs(logit: Logits, values: Floats) -> np.ndarray:
        return np.concatenate([logit[:, None], values], axis=1)

    trees = HistGradientBoostingClassifier(early_stopping=False, random_state=seed, **TREES)
    trees.fit(inputs(*train[:2]), train[2])
    logit, _, label = fit
    staged = [stage.ravel() for stage in trees.staged_decision_function(inputs(*fit[:2]))]
    losses = []
    for stage in staged:
        calibration = fit_calibration(stage, label)
        losses.append(logloss(label, calibration.a * stage + calibration.b))
    best = int(np.argmin(losses))
    staged_test = trees.staged_decision_function(inputs(base, counters))
    test = next(stage.ravel() for number, stage in enumerate(staged_test) if number == best)
    blend = LogisticRegression(C=1e3).fit(np.stack([logit, staged[best]], axis=1), label)
    return (
        blend.decision_function(np.stack([logit, staged[best]], axis=1)),
        blend.decision_function(np.stack([base, test], axis=1)),
        best + 1,
    )
