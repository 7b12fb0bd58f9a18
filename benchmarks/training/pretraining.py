"""What pre-training adds: modes, ablations and settings, at several shares of labelled rows, against training without it.

Every row takes part in pre-training; the labels of a share of them are known to it and to fine-tuning. All runs of a seed and share know
the same labels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.training import data
from benchmarks.training.units import Arrays, Unit, code_of
from thinktwice import recipes
from thinktwice.choices import Pretraining
from thinktwice.data.training_set import TrainingSet
from thinktwice.models import Backbone, Calibration, FieldSpace
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import fit as pretrain
from thinktwice.pretrain.pretrain import transferred_parts
from thinktwice.train.finetune import fit as finetune
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of

CODE = code_of(
    "benchmarks/training/pretraining.py",
    "benchmarks/training/data.py",
    "thinktwice/models/deepfm.py",
    "thinktwice/models/embedding.py",
    "thinktwice/pretrain",
    "thinktwice/train/augment.py",
    "thinktwice/train/loop.py",
    "thinktwice/train/optimizer.py",
    "thinktwice/train/run.py",
    "thinktwice/train/tune.py",
)
RECIPE = {"ml_100k_recent": "ml-100k", "ml_time": "ml-1m", "ml_random": "ml-1m"}
FACTS = ("pretrain_cpu_s", "finetune_cpu_s", "valid_logloss", "epochs")


@dataclass(frozen=True)
class Run:
    """One training: ``settings`` of pre-training that differ from the recipe's, and the ``share`` of labels that are known."""

    log: str
    mode: Pretraining
    settings: tuple[tuple[str, Any], ...] = ()
    share: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Its name among the units."""
        settings = "".join(f" {key}={value}" for key, value in self.settings)
        return f"pretraining {self.log} {self.mode}{settings} {self.share:g} seed {self.seed}"

    def unit(self, work: Path) -> Unit:
        return Unit(self.name, CODE, lambda: self.compute(work))

    def compute(self, work: Path) -> Arrays:
        """Calibrated logits of the test rows, and :data:`FACTS`."""
        training_set = data.load(self.log, work)
        recipe = recipes.resolved(RECIPE[self.log], pretraining=self.mode)
        train, valid, test = (training_set.part(part) for part in data.PARTS)
        known = np.random.default_rng(self.seed).random(len(train)) < self.share
        fields = FieldSpace.of(training_set.schema, training_set.encoder)
        began, start = time.process_time(), None
        if self.mode != "none":
            config = PretrainConfig.model_validate(recipe.pretrain.model_dump() | dict(self.settings))
            kind: Literal["dgenctr", "hetegenctr"] = "hetegenctr" if self.mode == "hetegenctr" else "dgenctr"
            done = pretrain(train, fields, recipe.model, config, seed=self.seed, kind=kind, labelled=known)
            start = transferred_parts(done.denoiser.backbone, config, self.seed)
        between = time.process_time()
        tuned = finetune(
            train.take(np.flatnonzero(known)),
            valid,
            fields,
            recipe.model,
            recipe.finetune,
            seed=self.seed,
            start_from=start,
        )
        facts = [between - began, time.process_time() - between, tuned.valid_logloss, tuned.epochs]
        return {"test": calibrated(tuned.model, tuned.calibration, BlockLoader(test)), "facts": np.array(facts)}


def calibrated(model: Backbone, calibration: Calibration, rows: BlockLoader) -> np.ndarray:
    """Calibrated logits, float64."""
    return calibration.a * logits_of(model, rows).astype(np.float64) + calibration.b


def cold(training_set: TrainingSet) -> dict[str, np.ndarray]:
    """Slices of the test rows: those with an unseen user or item, and those whose item is among the rarest that make up a tenth."""
    train, test = training_set.part("train"), training_set.part("test")
    out = {}
    for entity in ("user", "item"):
        column = training_set.encoder.column_of(training_set.schema.key_of(entity))
        if column is None:
            continue
        counts = np.bincount(train.ids[:, column], minlength=training_set.encoder.num_values[column])
        seen = counts[test.ids[:, column]]
        out[f"unseen {entity}"] = test.ids[:, column] == 0
        known = np.sort(seen[test.ids[:, column] > 0])
        if len(known):
            out[f"long tail {entity}"] = (test.ids[:, column] > 0) & (seen <= known[len(known) // 10])
    return out
