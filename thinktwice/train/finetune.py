"""Training of a click model: tuned on validation, calibrated, written with the record of its training."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import load_training_set
from thinktwice.errors import DataError
from thinktwice.files import atomic_dir, sha256_file
from thinktwice.models import Backbone, Calibration, FieldSpace, ModelInfo, build_backbone, load_model, write_model
from thinktwice.models.config import BackboneConfig
from thinktwice.models.store import WEIGHTS_FILE
from thinktwice.progress import note
from thinktwice.stats.metrics import UNDEFINED, logloss
from thinktwice.threads import reproducible
from thinktwice.train.augment import Augmenter
from thinktwice.train.checkpoint import Checkpoints, training_checkpoints
from thinktwice.train.checks import check_rows
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import fit_calibration, known_auc, logits_of
from thinktwice.train.record import (
    PRETRAINING_FILE,
    TRAINING_FILE,
    ChosenRecord,
    EvalRecord,
    FinetuneRecord,
    Init,
    Reached,
    TrialRecord,
)
from thinktwice.train.run import EvalPoint
from thinktwice.train.tune import STAGE, TrainingParts, Trial, TuningCandidate, tune
from thinktwice.train.unread import unread_rows
from thinktwice.train.warm_start import continued_model
from thinktwice.train.weights import row_weights

LABELS: dict[Init, str] = {"random": "plain", "continued": "continued", "pretrained": "pre-trained"}


@dataclass(frozen=True)
class Finetuned:
    """A trained model and the record of its training."""

    model: Backbone
    calibration: Calibration
    chosen: TuningCandidate
    trials: list[Trial]
    curve: list[EvalPoint]
    epochs: float  # trained until the weights that were kept
    valid_logloss: float  # calibrated
    valid_auc: float | None  # None: only one class


@reproducible()
def fit(
    train: EncodedRows,
    valid: EncodedRows,
    fields: FieldSpace,
    backbone: BackboneConfig,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    start_from: Backbone | None = None,
    checkpoints: Checkpoints | None = None,
    label: str = "plain",
    keep_unread: bool = False,
) -> Finetuned:
    """Train, tune and calibrate a model in memory.

    Args:
        start_from: provides all initial weights, and the architecture.
        label: of the runs in the progress.
        keep_unread: values that no training row has keep the vectors of ``start_from``.
        checkpoints: of this training, to continue from and to write.
    """
    for part, rows in (("train", train), ("validation", valid)):
        check_rows(rows, fields, part)
    train_rows, valid_rows = BlockLoader(train), BlockLoader(valid)
    augmenters = {kind: Augmenter(kind, train, fields, config) for kind in config.augmentations}
    if start_from is not None:
        backbone = start_from.config

    def start() -> Backbone:
        model = build_backbone(backbone, fields, seed=seed)
        if start_from is not None:
            model.load_state_dict(start_from.state_dict())
        elif fields.num_rows >= config.sparse_rows:
            # Where only the rows of a batch decay, a vector that no training row reads would stay at random.
            with torch.no_grad():
                model.embedding.table[model.embedding.offsets] = 0.0
        return model

    weights = row_weights(train, config)
    unread = unread_rows(start_from, train) if start_from is not None and keep_unread else None
    parts = TrainingParts(start, augmenters, train_rows, valid_rows, seed, f"{label}, ", weights, checkpoints, unread)
    tuned = tune(config, parts)
    logit, truth = logits_of(tuned.model, valid_rows), valid.label
    calibration = fit_calibration(logit, truth)
    calibrated = calibration.a * logit.astype(np.float64) + calibration.b
    return Finetuned(
        tuned.model,
        calibration,
        tuned.chosen,
        tuned.trials,
        tuned.trained.curve,
        tuned.trained.best.epoch,
        logloss(truth, calibrated),
        known_auc(truth, logit),
    )


def finetune(
    training_set_dir: Path | str,
    out_dir: Path | str,
    backbone: BackboneConfig,
    config: FinetuneConfig,
    *,
    seed: int = 0,
    init_dir: Path | str | None = None,
    checkpoints: str = "",
) -> FinetuneRecord:
    """Fine-tune on a training set folder and write a model folder; returns the content of its ``training.json``.

    With ``init_dir`` (a pre-trained model folder) all parameters start from there and the architecture is taken from it. Without, a
    training set that continues an earlier model gives the parameters (:mod:`thinktwice.train.warm_start`). With
    ``checkpoints`` (a folder, or ``s3://BUCKET/FOLDER``) a killed training continues where it was; they are removed at the end.

    Raises:
        DataError: the pre-trained model was built on another training set, the earlier model has another backbone, or a label is not
            0 or 1.
        TrainingError: the loss diverged, or the checkpoints are of another training.
        ResourceError: the disk is full. StorageError: the location of the checkpoints cannot be used.
    """
    data = load_training_set(training_set_dir)
    fields = FieldSpace.of(data.schema, data.encoder)
    init: Init = "random"
    if init_dir is None:
        if (start_from := continued_model(data, fields, backbone, seed=seed)) is not None:
            init = "continued"
    else:
        init = "pretrained"
        start_from, _ = load_model(init_dir)
        if start_from.fields != fields:
            raise DataError(
                f"pre-trained model {init_dir} has other fields or vocabularies than {training_set_dir}: "
                "pre-train on the same training set"
            )
    train, valid = data.part("train"), data.part("valid")
    saved = None
    if checkpoints:
        origin = data.start if init_dir is None else Path(init_dir)
        start = "" if origin is None else sha256_file(origin / WEIGHTS_FILE)
        saved = training_checkpoints(
            checkpoints, data, fields, {"backbone": backbone, "settings": config}, seed=seed, start=start
        )
    done = fit(
        train,
        valid,
        fields,
        backbone,
        config,
        seed=seed,
        start_from=start_from,
        checkpoints=saved,
        label=LABELS[init],
        keep_unread=data.start is not None,
    )
    record = FinetuneRecord(
        format=FinetuneRecord.FORMAT,
        init=init,
        seed=seed,
        torch=torch.__version__,
        chosen=ChosenRecord(**_described(done.chosen), epochs=done.epochs),
        trials=tuple(
            TrialRecord.model_validate(asdict(trial) | {"candidate": _described(trial.candidate)})
            for trial in done.trials
        ),
        curve=tuple(EvalRecord.model_validate(asdict(point)) for point in done.curve),
        valid=Reached(logloss=done.valid_logloss, auc=done.valid_auc),
        config=config,
        rows={"train": len(train), "valid": len(valid)},
    )
    provenance = {
        "schema": data.schema.name,
        "train_window": list(data.train_window),
        "seed": seed,
        "init": record.init,
        "chosen": record.chosen.model_dump(mode="json"),
    }
    info = ModelInfo(stage="finetuned", calibration=done.calibration, provenance=provenance)
    with atomic_dir(out_dir) as folder:
        write_model(folder, done.model, info)
        record.write(folder / TRAINING_FILE)
        if init_dir is not None and (before := Path(init_dir) / TRAINING_FILE).is_file():
            shutil.copyfile(before, folder / PRETRAINING_FILE)
    if saved is not None:
        saved.remove()
    valid_auc = UNDEFINED if done.valid_auc is None else f"{done.valid_auc:.4f}"
    note(STAGE, f"valid AUC {valid_auc}, L2 {done.chosen.table_l2:g}, {done.chosen.augmentation}")
    return record


def _described(candidate: TuningCandidate) -> dict[str, Any]:
    """A candidate in the words of the record, where ``epochs`` is the length until the weights that were kept."""
    return {
        "table_l2": candidate.table_l2,
        "augmentation": candidate.augmentation,
        "unknown_share": candidate.unknown_share,
        "length": candidate.epochs,
    }
