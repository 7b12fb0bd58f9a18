"""What pre-training learned: the loss of every field, the weights that balancing gave it, and how well each class is restored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from thinktwice.errors import BundleError
from thinktwice.evaluate.findings import sentences
from thinktwice.evaluate.findings.record import Pretraining, RestoredField
from thinktwice.pretrain.record import PretrainRecord
from thinktwice.train.record import PRETRAINING_FILE
from thinktwice.versioned import read_result

LEAST_FIELDS = 3  # fewer have no order to speak of


def pretraining(folder: Path) -> Pretraining | None:
    """The pre-training from which a fine-tuned model started; None if it started from none, or its folder has no record of it.

    Raises:
        BundleError: the record is damaged.
    """
    path = folder / PRETRAINING_FILE
    if not path.is_file():
        return None
    return described(read_result(path, PretrainRecord, BundleError, "train the model again"))


def described(record: PretrainRecord) -> Pretraining:
    """The record of a pre-training as the report shows it."""
    curve = record.curve
    names = [name for name in record.difficulties or _all_fields(record) if any(name in p.fields for p in curve)]
    balanced = record.kind == "hetegenctr"
    fields = tuple(
        RestoredField(
            name=name,
            losses=tuple(point.fields.get(name) for point in curve),
            weights=tuple(point.weights[name] for point in curve if name in point.weights),
            entropy=record.unigram_entropy.get(name) if name not in record.sampled_losses else None,
            difficulty=record.difficulties.get(name),
        )
        for name in names
    )
    fields = tuple(sorted(fields, key=lambda one: (-(one.losses[-1] or 0.0), one.name)))  # the hardest first
    correlation = loss_and_weight(fields)
    return Pretraining(
        kind=record.kind,
        balancing=record.config.balancing if balanced else None,
        epochs=tuple(point.epoch for point in curve),
        label=tuple(point.label for point in curve),
        fields=fields,
        by_class=record.by_class,
        correlation=correlation,
        summary=sentences.restored(fields),
        classes=sentences.classes(record.by_class),
        equilibrium=sentences.equilibrium(fields),
        sign=sentences.sign(fields, correlation) if balanced and record.config.balancing == "kendall" else "",
    )


def loss_and_weight(fields: tuple[RestoredField, ...]) -> float | None:
    """Spearman's correlation of the fields' last losses and last weights; None with fewer than three fields, or equal ones."""
    pairs = [(one.losses[-1], one.weights[-1]) for one in fields if one.weights and one.losses[-1] is not None]
    if len(pairs) < LEAST_FIELDS:
        return None
    losses, weights = (rankdata(values) for values in zip(*pairs, strict=True))
    if np.ptp(losses) == 0 or np.ptp(weights) == 0:
        return None
    return float(np.corrcoef(losses, weights)[0, 1])


def _all_fields(record: PretrainRecord) -> list[str]:
    """Names of the fields that were masked at least once, in the order of their first appearance."""
    return list(dict.fromkeys(name for point in record.curve for name in point.fields))
