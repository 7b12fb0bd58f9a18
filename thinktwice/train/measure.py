"""Logits of a whole part, their AUC, and the calibration fitted to them."""

from __future__ import annotations

import numpy as np
import torch

from thinktwice.calibration import Calibration
from thinktwice.stats.calibration import fit_platt
from thinktwice.stats.metrics import auc
from thinktwice.threads import reproducible
from thinktwice.train.device import on_device
from thinktwice.train.joint import Trainee
from thinktwice.train.loader import BlockLoader

EVALUATION_BATCH = 8192


@reproducible()
def logits_of(model: Trainee, rows: BlockLoader) -> np.ndarray:
    """Logits [R] float32 of all rows (the mean over members of a joint model), in evaluation mode, on the model's device."""
    training, device = model.training, model.embedding.table.device
    model.eval()
    with torch.inference_mode():
        parts = [model(on_device(batch, device)).cpu().numpy() for batch in rows.in_order(EVALUATION_BATCH)]
    model.train(training)
    return np.concatenate(parts)


def known_auc(label: np.ndarray, logit: np.ndarray) -> float | None:
    """AUC; None if there is only one class."""
    value = auc(label, logit)
    return None if np.isnan(value) else value


def fit_calibration(logit: np.ndarray, label: np.ndarray) -> Calibration:
    """The calibration that minimises logloss (:func:`thinktwice.stats.calibration.fit_platt`)."""
    a, b = fit_platt(logit, label)
    return Calibration(a=a, b=b)
