"""The trunk trained with counters among its inputs: the same evidence as a correction, in a fresh base pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from thinktwice.data.encoded import num_bytes
from thinktwice.data.instant.definition import definition_of
from thinktwice.models.backbone import Backbone
from thinktwice.models.fields import CounterFields
from thinktwice.models.registry import build_backbone
from thinktwice.progress import note
from thinktwice.selection.evidence import STAGE, EvidenceRows
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import auc
from thinktwice.testtime.extras import Extras
from thinktwice.threads import reproducible
from thinktwice.train.augment import Augmenter
from thinktwice.train.beside import Training, beside
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar
from thinktwice.train.measure import fit_calibration, logits_of
from thinktwice.train.run import train as run_training


def counter_training(inputs: EvidenceRows, base: Backbone) -> AbstractContextManager[Training[Backbone]]:
    """Train the trunk ``base`` with counters, with its L2 and augmentation, on the train rows and counters of ``inputs``, beside
    this process if a core is idle. The earlier validation rows choose the epoch."""
    definition, scale, training = definition_of(inputs.data.schema), inputs.data.counter_scale, inputs.training
    assert definition is not None and scale is not None
    fields = base.fields.with_counters(CounterFields.of(definition, scale))
    settings, chosen = training.chosen_settings, training.chosen

    def train(model: Backbone) -> None:
        run_training(
            model,
            Augmenter(chosen.augmentation, inputs.rows, fields, settings),
            BlockLoader(inputs.rows, with_counters=True),
            BlockLoader(inputs.fit, with_counters=True),
            settings,
            table_l2=chosen.table_l2,
            epochs=settings.epochs,
            seed=training.seed,
            bar=Bar(STAGE, "trunk with counters"),
        )

    def build() -> Backbone:
        return build_backbone(base.config, fields, seed=training.seed)

    return beside(build, train, num_bytes(inputs.rows))


@reproducible()
def counter_model(inputs: EvidenceRows, trial_model: TrialModel, training: Training[Backbone]) -> TrialModel:
    """The model of a training with counters, calibrated on the earlier validation rows."""
    model = training.model()
    logit = logits_of(model, BlockLoader(inputs.fit, with_counters=True))
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
