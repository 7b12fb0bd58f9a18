"""The study of one log and seed: every method is fitted on train and validation, and measured on test rows against the trunk
scored once.

Every score is calibrated on the earlier half of validation; nothing is chosen on test rows. Shapes: R test rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from thinktwice import recipes
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.models import Backbone, load_model
from thinktwice.models.logit_network import Floats
from thinktwice.selection.evidence import EvidenceFit, evidence_fit, network_report, of_other_rows
from thinktwice.selection.trunks import Trunk
from thinktwice.stats.metrics import auc, logloss, row_logloss
from thinktwice.stats.significance import clusters_of, paired_auc, paired_mean
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.evidence.correction import CorrectionNetwork, known_rows
from thinktwice.testtime.evidence.retrieval import Retrieval, retrieval_inputs
from thinktwice.testtime.support import entropy
from thinktwice.train.finetune import finetune
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import fit_calibration, logits_of

SHARES = (0.1, 0.2, 0.4, 1.0)
DRAWS = 8  # random choices of rows, whose changes are averaged
TREES = {"max_iter": 120, "learning_rate": 0.08, "max_leaf_nodes": 16, "min_samples_leaf": 100}

Logits = np.ndarray


@dataclass(frozen=True, eq=False)
class Scores:
    """Logits of the calibration rows and of the test rows."""

    fit: Logits
    test: Logits


@dataclass(frozen=True, eq=False)
class Panel:
    """The rows for measuring methods, and the trunk's log-odds on the test rows."""

    fit: EncodedRows
    test: EncodedRows
    base: Logits

    def log_odds(self, scores: Scores) -> Logits:
        calibration = fit_calibration(scores.fit, self.fit.label)
        return calibration.a * scores.test + calibration.b

    def measured(self, logit: Logits) -> dict[str, Any]:
        """AUC and logloss [R], and their changes against the trunk with 95 % intervals clustered by user."""
        cluster, label = clusters_of(self.test.user), self.test.label
        change = row_logloss(label, logit) - row_logloss(label, self.base)
        return {
            "auc": auc(label, logit),
            "logloss": logloss(label, logit),
            "auc_change": paired_auc(label, self.base, logit, cluster).to_json(),
            "logloss_change": paired_mean(change, cluster).to_json(),
        }


def study(sets: dict[str, TrainingSet], recipe: str, seed: int) -> dict[str, Any]:
    """All methods of one log and seed."""
    first = next(iter(sets.values()))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("first", "second")]
        for number, path in enumerate(paths):
            settings = recipes.get(recipe)
            finetune(first.folder, path, settings.model, settings.finetune, seed=seed + 1000 * number)
        opened = [Trunk(path, *load_model(path)) for path in paths]
        models = [trunk.model for trunk in opened]
        positions = np.arange(len(first.part("valid")))
        fitted_evidence = evidence_fit(first, opened[0], positions, lambda rows: _logits(models[0], rows))
    assert isinstance(fitted_evidence, EvidenceFit), fitted_evidence
    test = first.part("test")
    trunks = [Scores(_logits(m, fitted_evidence.fit), _logits(m, test)) for m in models]
    unmeasured = Panel(fitted_evidence.fit, test, trunks[0].test)
    panel = replace(unmeasured, base=unmeasured.log_odds(trunks[0]))
    mean_of_two = Scores(
        *((a + b) / 2 for a, b in zip(vars(trunks[0]).values(), vars(trunks[1]).values(), strict=True))
    )
    out: dict[str, Any] = {
        "seed": seed,
        "rows": {"train": len(fitted_evidence.rows), "test": len(test), "examples": len(fitted_evidence.examples)},
        "trunk": panel.measured(panel.base),
        "two_trunks": panel.measured(panel.log_odds(mean_of_two)),
        "delays": {
            delay: _with_evidence(_delayed(fitted_evidence, data), data, trunks[0].test, panel)
            for delay, data in sets.items()
        },
    }
    return out


def _delayed(evidence_inputs: EvidenceFit, data: TrainingSet) -> EvidenceFit:
    """A copy with the same trunks and rows, and the evidence of another training set."""
    valid = data.part_with_evidence("valid").take(evidence_inputs.valid_positions)
    return replace(evidence_inputs, data=data, rows=data.part_with_evidence("train"), valid=valid)


def _with_evidence(evidence_inputs: EvidenceFit, data: TrainingSet, base: Logits, panel: Panel) -> dict[str, Any]:
    """Every method that reads evidence; ``base`` [R] are the trunk's logits."""
    test = data.part_with_evidence("test")
    assert (
        evidence_inputs.rows.evidence is not None
        and evidence_inputs.fit.evidence is not None
        and test.evidence is not None
    )
    train_counters = np.asarray(evidence_inputs.rows.evidence.counters[evidence_inputs.examples])
    fit_counters, test_counters = evidence_inputs.fit.evidence.counters, test.evidence.counters
    start = time.process_time()
    correction, fitted = evidence_inputs.correction(train_counters, fit_counters)
    seconds = time.process_time() - start
    first = Scores(correction(evidence_inputs.fit_logits, fit_counters), correction(base, test_counters))
    other_correction, _ = evidence_inputs.correction(of_other_rows(train_counters), of_other_rows(fit_counters))
    other_scores = Scores(
        other_correction(evidence_inputs.fit_logits, of_other_rows(fit_counters)),
        other_correction(base, of_other_rows(np.asarray(test_counters))),
    )
    out: dict[str, Any] = {
        "correction": panel.measured(panel.log_odds(first))
        | {
            "kept": network_report(fitted, len(train_counters)).model_dump(),
            "train_cpu_seconds": seconds,
            "microseconds_per_100_rows": _microseconds(
                lambda: correction(base[:100], np.ascontiguousarray(test_counters[:100]))
            ),
        },
        "other_counters": panel.measured(panel.log_odds(other_scores)) | {"zero": other_correction.is_zero},
        "trees": panel.measured(panel.log_odds(_trees(evidence_inputs, train_counters, base, test_counters))),
    }
    retrieved = evidence_inputs.retrieval(correction, train_counters)
    if retrieved is not None:
        retrieval, fitted, examples = retrieved
        report = network_report(fitted, examples).model_dump()
        out["retrieval"] = {"kept": report} | _second_look(
            retrieval, correction, evidence_inputs, test, first, base, panel
        )
    return out


def _second_look(
    retrieval: Retrieval,
    correction: CorrectionNetwork,
    evidence_inputs: EvidenceFit,
    test: EncodedRows,
    first: Scores,
    base: Logits,
    panel: Panel,
) -> dict[str, Any]:
    """Retrieved outcomes for a share of rows, by order of escalation."""
    column = evidence_inputs.data.encoder.column_of(evidence_inputs.data.schema.key_of("item"))
    assert column is not None

    def second(rows: EncodedRows, logit: Logits) -> Logits:
        assert rows.evidence is not None and rows.evidence.history is not None
        history = rows.evidence.history()
        assert history is not None
        features, has = retrieval.neighbours.features(rows.ids[:, column].astype(np.int64), history)
        counters = np.asarray(rows.evidence.counters)
        inputs = retrieval_inputs(correction.standard, retrieval.standard, logit, counters, features)
        use = has & known_rows(counters, correction.num_counters)
        return np.where(use, logit + retrieval.network(inputs), logit)

    every = panel.log_odds(Scores(second(evidence_inputs.fit, first.fit), second(test, first.test)))
    corrected = panel.log_odds(first)
    rng = np.random.default_rng(0)
    orders: dict[str, list[Logits]] = {
        "random": [rng.random(len(test)) for _ in range(DRAWS)],
        "entropy": [entropy(sigmoid(corrected))],
        "moved": [np.abs(first.test - base)],
        "oracle": [np.abs(sigmoid(every) - sigmoid(corrected))],
    }
    label, cluster = test.label, clusters_of(test.user)
    whole = auc(label, every) - auc(label, corrected)
    out: dict[str, Any] = {
        "all_rows": panel.measured(every),
        "over_correction": paired_auc(label, corrected, every, cluster).to_json(),
        "shares": {},
    }
    for name, signals in orders.items():
        out["shares"][name] = {}
        for share in SHARES:
            mixed = [_mixed(signal, share, corrected, every) for signal in signals]
            gains = [auc(label, z) - auc(label, corrected) for z in mixed]
            out["shares"][name][f"{share:g}"] = {
                "auc_gain": float(np.mean(gains)),
                "kept": float(np.mean(gains) / whole) if whole else None,
                "auc_change": paired_auc(label, panel.base, mixed[0], cluster).to_json(),
            }
    return out


def _mixed(signal: Logits, share: float, first: Logits, second: Logits) -> Logits:
    """The second score for the rows of the highest ``signal``, the first for the others."""
    chosen = np.argsort(-signal, kind="stable")[: round(share * len(signal))]
    out = first.copy()
    out[chosen] = second[chosen]
    return out


def _trees(evidence_inputs: EvidenceFit, train_counters: Floats, base: Logits, test_counters: Floats) -> Scores:
    """Boosted trees on the base logit and the counters, their number chosen on validation, blended with the base logit by a
    regression on validation."""
    scale = evidence_inputs.data.counter_scale
    assert scale is not None

    def inputs(logit: Logits, counters: Floats) -> np.ndarray:
        return np.concatenate([logit[:, None], np.asarray(counters)], axis=1)

    assert evidence_inputs.fit.evidence is not None
    train, fit = (
        inputs(evidence_inputs.logits, train_counters),
        inputs(evidence_inputs.fit_logits, evidence_inputs.fit.evidence.counters),
    )
    trees = HistGradientBoostingClassifier(early_stopping=False, random_state=evidence_inputs.seed, **TREES)
    trees.fit(train, evidence_inputs.rows.label[evidence_inputs.examples])
    staged = list(trees.staged_decision_function(fit))
    losses = []
    for stage in staged:
        calibration = fit_calibration(stage.ravel(), evidence_inputs.fit.label)
        losses.append(logloss(evidence_inputs.fit.label, calibration.a * stage.ravel() + calibration.b))
    best = int(np.argmin(losses))
    staged_test = next(
        z for number, z in enumerate(trees.staged_decision_function(inputs(base, test_counters))) if number == best
    )
    blend = LogisticRegression(C=1e3).fit(
        np.stack([evidence_inputs.fit_logits, staged[best].ravel()], axis=1), evidence_inputs.fit.label
    )
    return Scores(
        blend.decision_function(np.stack([evidence_inputs.fit_logits, staged[best].ravel()], axis=1)),
        blend.decision_function(np.stack([base, staged_test.ravel()], axis=1)),
    )


def _logits(model: Backbone, rows: EncodedRows) -> Logits:
    return logits_of(model, BlockLoader(rows)).astype(np.float64)


def _microseconds(call: Callable[[], object], rounds: int = 200) -> float:
    """Median CPU time of a call in this thread."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.thread_time()
        call()
        seconds.append(time.thread_time() - start)
    return float(np.median(seconds)) * 1e6
