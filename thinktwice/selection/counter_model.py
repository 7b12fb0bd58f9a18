"""The trunk trained with counters among its inputs: the same evidence as a correction, in a fresh base pass."""

from __future__ import annotations

from dataclasses import replace

from thinktwice.data.instant.definition import definition_of
from thinktwice.models.fields import CounterFields
from thinktwice.models.registry import build_backbone
from thinktwice.progress import note
from thinktwice.selection.evidence import STAGE, EvidenceFit
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import auc
from thinktwice.testtime.extras import Extras
from thinktwice.threads import reproducible
from thinktwice.train.augment import Augmenter
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar
from thinktwice.train.measure import fit_calibration, logits_of
from thinktwice.train.run import train as run_training


@reproducible()
def fit_counter_model(inputs: EvidenceFit, trial_model: TrialModel) -> TrialModel:
    """Train like ``trial_model``, with its L2 and augmentation, on the train rows and counters of ``inputs``. The earlier
    validation rows choose the epoch and the calibration."""
    definition, scale, training = definition_of(inputs.data.schema), inputs.data.counter_scale, inputs.training
    assert definition is not None and scale is not None and training is not None
    base = trial_model.model
    fields = base.fields.with_counters(CounterFields.of(definition, scale))
    model = build_backbone(base.config, fields, seed=training.seed)
    rows, fit = BlockLoader(inputs.rows, with_counters=True), BlockLoader(inputs.fit, with_counters=True)
    run_training(
        model,
        Augmenter(training.chosen.augmentation, inputs.rows, fields, training.chosen_settings),
        rows,
        fit,
        training.chosen_settings,
        table_l2=training.chosen.table_l2,
        epochs=training.chosen_settings.epochs,
        seed=training.seed,
        bar=Bar(STAGE, "trunk with counters"),
    )
    logit = logits_of(model, fit)
    note(STAGE, f"trunk with counters: AUC {auc(inputs.fit.label, logit):.4f} on earlier validation rows")
    return replace(
        trial_model,
        model=model,
        calibration=fit_calibration(logit, inputs.fit.label),
        reliability=trial_model.reliability.resized(model.num_fields),
        extras=Extras(),
        evidence=None,
        counter_model=None,
    )
