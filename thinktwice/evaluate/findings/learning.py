"""Did the model overfit: where training kept its weights, and what these weights are worth on rows that it has and has not seen."""

from __future__ import annotations

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.evaluate.findings import sentences
from thinktwice.evaluate.findings.baselines import evenly
from thinktwice.evaluate.findings.record import Learning, PartQuality
from thinktwice.selection.trunks import Trunk
from thinktwice.stats.metrics import logloss
from thinktwice.testtime.report import TrunkName
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import known_auc, logits_of

MAX_ROWS = 20_000  # of each part


def learning(
    name: TrunkName, trunk: Trunk, train: EncodedRows, valid: EncodedRows, test: EncodedRows
) -> Learning | None:
    """The training of a trunk; None if there is no record of it."""
    record = trunk.training
    if record is None:
        return None
    steps = max(1, record.rows["train"] // min(record.chosen_settings.batch_size, record.rows["train"]))
    on_train, on_valid, on_test = (_quality(trunk, evenly(rows, MAX_ROWS)) for rows in (train, valid, test))
    return Learning(
        trunk=name,
        kept=record.chosen.epochs,
        steps_per_epoch=steps,
        train=on_train,
        valid=on_valid,
        test=on_test,
        sentence=sentences.learning(record.curve, record.chosen.epochs, on_train, on_valid),
    )


def _quality(trunk: Trunk, rows: EncodedRows) -> PartQuality:
    """Calibrated scores of one plain pass."""
    raw = logits_of(trunk.model, BlockLoader(rows)).astype(np.float64)
    calibration = trunk.info.calibration
    logit = calibration.a * raw + calibration.b
    return PartQuality(rows=len(rows), auc=known_auc(rows.label, logit), logloss=logloss(rows.label, logit))
