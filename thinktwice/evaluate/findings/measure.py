"""All findings about the model that ships, in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.evaluate import slices
from thinktwice.evaluate.findings import sentences
from thinktwice.evaluate.findings.baselines import Fitting, baseline_scores, compared, is_good
from thinktwice.evaluate.findings.importance import importance, parts_of
from thinktwice.evaluate.findings.learning import learning
from thinktwice.evaluate.findings.pretraining import pretraining
from thinktwice.evaluate.findings.record import Findings, SliceKind
from thinktwice.evaluate.findings.weakness import Slice, weakness
from thinktwice.selection.trial_model import TrialModel
from thinktwice.selection.trunks import Trunks
from thinktwice.stats.significance import clusters_of
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.reliability import Reliability


@dataclass(frozen=True)
class Shipped:
    """What ships: the model with its configuration, and its log-odds [R] of the test rows."""

    trial_model: TrialModel
    config: TestTimeConfig
    logit: np.ndarray
    passes: float

    def score(self, rows: EncodedRows) -> np.ndarray:
        """Log-odds of other rows."""
        return self.trial_model.logits(self.config, rows)[0]


def findings(
    data: TrainingSet,
    trunks: Trunks,
    shipped: Shipped,
    test: EncodedRows,
    rows: pl.DataFrame,
    reliability: Reliability,
    fitting: Fitting,
) -> Findings:
    """Measure the model on its R test rows, ``test`` encoded and ``rows`` as they are, in the same order, against baselines whose
    ``fitting`` has begun.

    Raises:
        BundleError: the record of a training is damaged.
    """
    label, cluster = test.label.astype(np.float64), clusters_of(test.user)
    train, valid = data.part("train"), data.part("valid")
    comparison = compared(label, cluster, shipped.logit, *baseline_scores(data, fitting, valid, test))
    engine = shipped.trial_model.engine(shipped.config)
    pretrained = trunks.get("pretrained")
    return Findings(
        headline=sentences.headline(comparison),
        good=is_good(comparison),
        comparison=comparison,
        learning=tuple(
            one for name, trunk in trunks.items() if (one := learning(name, trunk, train, valid, test)) is not None
        ),
        importance=importance(
            test,
            cluster,
            parts_of(data, counters=engine.reads_counters, history=engine.reads_history),
            shipped.score,
            passes=shipped.passes,
        ),
        weakness=weakness(label, shipped.logit, cluster, _slices(data, test, rows, reliability)),
        pretraining=None if pretrained is None else pretraining(pretrained.folder),
    )


def _slices(data: TrainingSet, test: EncodedRows, rows: pl.DataFrame, reliability: Reliability) -> list[Slice]:
    masks: dict[SliceKind, Mapping[str, np.ndarray]] = {
        "novelty": {name.replace("cold", "new"): mask for name, mask in slices.cold_start(data, rows).items()},
        "support": {
            f"rarest value seen {name} times": mask for name, mask in slices.support_deciles(reliability, test)
        },
        "category": slices.categories(data, test),
        "hour": slices.hours(data, test),
    }
    return [Slice(name, kind, mask) for kind, found in masks.items() for name, mask in found.items()]
