"""Distillation: one trunk trained on the logits of several, for part of the accuracy of an ensemble at the cost of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit

from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import DataError
from thinktwice.models.backbone import Backbone
from thinktwice.models.config import BackboneConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of
from thinktwice.train.members import fit_members


def mean_logit(models: Sequence[Backbone], rows: EncodedRows) -> np.ndarray:
    """Mean of the models' logits, float64 [R]."""
    loader = BlockLoader(rows)
    return np.stack([logits_of(model, loader) for model in models]).mean(axis=0, dtype=np.float64)


def fit_distilled(
    train: EncodedRows,
    valid: EncodedRows,
    fields: FieldSpace,
    backbone: BackboneConfig,
    config: FinetuneConfig,
    teacher_logit: np.ndarray,
    *,
    table_l2: float,
    augmentation: Augmentation,
    soft: float,
    seed: int,
) -> Backbone:
    """A model trained on ``(1 - soft) * label + soft * sigmoid(teacher_logit)`` and judged on the labels of ``valid``.

    Knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531) for one logit, at temperature 1. The teachers were
    trained on the same rows; their L2 keeps them from reproducing the labels.

    Args:
        teacher_logit: one logit per train row [R], such as :func:`mean_logit` of the teachers.
        soft: share of the teachers in the target, 0 to 1; 0 is plain training.

    Raises:
        DataError: the number of teacher logits differs from that of train rows.
    """
    if teacher_logit.shape != train.label.shape:
        raise DataError(
            f"teacher logits have shape {teacher_logit.shape}, train labels {train.label.shape}: score the train rows"
        )
    target = (1.0 - soft) * train.label + soft * expit(teacher_logit.astype(np.float64))
    taught = replace(train, label=target.astype(np.float32))
    (model,) = fit_members(
        "own",
        taught,
        valid,
        fields,
        backbone,
        config,
        table_l2=table_l2,
        augmentation=augmentation,
        count=1,
        seed=seed,
    )
    return model
