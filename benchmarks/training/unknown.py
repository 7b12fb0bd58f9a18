"""The vector of unknown users and items: never trained, trained on values made unknown in different ways, or set after training.

``none`` makes no value unknown in training, so the vectors of unknown values come to rest near 0 by L2 alone. ``share`` makes a share of all
values, users and items unknown; ``rare in earlier blocks`` and ``new in earlier blocks`` those ids that were rare or absent in the blocks of
time before a row, as ids of the test rows are. ``mean`` and ``fields`` change the model of ``none`` where a user or an item is unknown: by
the mean vector of the known ones, or by a ridge regression of their vectors on the other fields of the user or item.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import Ridge
from torch import Tensor

from benchmarks.training import data
from benchmarks.training.units import Arrays, Unit, code_of
from thinktwice import recipes
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.models import Backbone, FieldSpace
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import fit
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import EVALUATION_BATCH, fit_calibration

NONE = "none"
TRAINED: dict[str, dict[str, Any]] = {
    NONE: {"unknown_share": 0.0},
    "share 1 %": {"unknown_share": 0.01},
    "share 5 %": {"unknown_share": 0.05},
    "share 20 %": {"unknown_share": 0.2},
    "rare in earlier blocks": {"unknown_share": 0.0, "augmentations": ("mask_block",)},
    "new in earlier blocks": {"unknown_share": 0.0, "augmentations": ("mask_block",), "kappa": 1e-9},
}
MEAN, FIELDS = "mean", "fields"
HANDLINGS = (*TRAINED, MEAN, FIELDS)
EPOCHS = 8.0  # the weights of the best of sixteen evaluations on validation are kept
PENALTY = 10.0  # of the ridge regression, whose rows are users or items
PARTS = ("valid", "test")
CODE = code_of(
    "benchmarks/training/unknown.py",
    "benchmarks/training/data.py",
    "thinktwice/models/deepfm.py",
    "thinktwice/models/embedding.py",
    *(f"thinktwice/train/{name}.py" for name in ("augment", "averaging", "loop", "optimizer", "run")),
)


@dataclass(frozen=True)
class Handling:
    """One training; that of :data:`NONE` is measured with the vectors of :data:`MEAN` and :data:`FIELDS` as well."""

    log: str
    name: str
    seed: int = 0

    @property
    def config(self) -> FinetuneConfig:
        """The first candidate of the recipe ``default``, with a fixed longest length."""
        fixed = {
            "budget": None,
            "unknown_shares": (),
            "augmentations": ("none",),
            "epochs": EPOCHS,
            "trial_epochs": EPOCHS,
        }
        return recipes.get("default").finetune.model_copy(update=fixed | TRAINED[self.name])

    def unit(self, work: Path) -> Unit:
        """Its unit of work."""
        settings = self.config.model_dump_json(exclude_defaults=True)
        return Unit(
            f"unknown {self.log} {self.name} seed {self.seed}", f"{CODE} {settings}", lambda: self._compute(work)
        )

    def _compute(self, work: Path) -> Arrays:
        """Calibrated logits ``HANDLING:PART`` and ``facts``: CPU seconds and epochs until the weights that were kept."""
        training_set = data.load(self.log, work)
        train, valid, _ = (training_set.part(part) for part in data.PARTS)
        start = time.process_time()
        fields = FieldSpace.of(training_set.schema, training_set.encoder)
        done = fit(train, valid, fields, recipes.get("default").model, self.config, seed=self.seed)
        out = {"facts": np.array([time.process_time() - start, done.epochs])}
        vectors: dict[str, dict[int, Vectors]] = {self.name: {}}
        if self.name == NONE:
            vectors |= {MEAN: {}, FIELDS: {}}
            for column, others in keys_of(training_set, fields).items():
                vectors[MEAN][column] = Vectors.fitted(done.model, train, column, ())
                vectors[FIELDS][column] = Vectors.fitted(done.model, train, column, others)
        for name, of in vectors.items():
            logit = {part: logits_with(done.model, training_set.part(part), of) for part in PARTS}
            calibration = fit_calibration(logit["valid"], valid.label)
            out |= {f"{name}:{part}": calibration.a * logit[part] + calibration.b for part in PARTS}
        return out


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of unknown values of a column: ``mean`` [D], plus ``weights`` [D, n] times the one-hot values of the columns ``others``,
    which have ``sizes`` values."""

    mean: np.ndarray
    weights: np.ndarray
    others: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def fitted(model: Backbone, train: EncodedRows, column: int, others: tuple[int, ...]) -> Vectors:
        """From the vectors of the known values, each one row with the other columns as in its latest training row."""
        known, latest = np.unique(train.ids[::-1, column], return_index=True)
        rows = train.ids[len(train) - 1 - latest]
        start, sizes = model.fields.offsets[column], tuple(model.fields.num_values[other] for other in others)
        values = model.embedding.table.detach().numpy()[start + known[known > 0]].astype(np.float64)
        if not others:
            return Vectors(values.mean(axis=0), np.zeros((values.shape[1], 0)), (), ())
        ridge = Ridge(alpha=PENALTY, solver="sparse_cg").fit(_one_hot(rows[known > 0], others, sizes), values)
        return Vectors(ridge.intercept_, ridge.coef_, others, sizes)

    def of(self, ids: np.ndarray) -> Tensor:
        """The vectors [R, D] of rows, by their ids [R, C]."""
        added = _one_hot(ids, self.others, self.sizes) @ self.weights.T if self.others else 0.0
        return torch.from_numpy((self.mean + np.zeros((len(ids), 1)) + added).astype(np.float32))


def _one_hot(ids: np.ndarray, columns: tuple[int, ...], sizes: tuple[int, ...]) -> csr_matrix:
    """The known values of columns, one after the other; an unknown one is a row of zeros."""
    parts = []
    for column, size in zip(columns, sizes, strict=True):
        known = np.flatnonzero(ids[:, column])
        parts.append(csr_matrix((np.ones(len(known)), (known, ids[known, column])), shape=(len(ids), size)))
    return hstack(parts, format="csr")


def keys_of(training_set: TrainingSet, fields: FieldSpace) -> dict[int, tuple[int, ...]]:
    """Columns of the ids of users and items, each with the other columns of a user or item."""
    return {
        column: tuple(
            c for c in range(len(fields.num_values)) if c != column and fields.entities[c] == fields.entities[column]
        )
        for column in slices_of(training_set).values()
    }


def slices_of(training_set: TrainingSet) -> dict[str, int]:
    """The column of the id by what is unknown where it is: a user or an item."""
    columns = {
        f"unknown {entity}": training_set.encoder.column_of(training_set.schema.key_of(entity))
        for entity in ("user", "item")
    }
    return {name: column for name, column in columns.items() if column is not None}


@torch.inference_mode()
def logits_with(model: Backbone, rows: EncodedRows, vectors: dict[int, Vectors]) -> np.ndarray:
    """Logits [R] float64, where unknown values of columns have ``vectors`` in place of those of the model."""
    out, start = [], 0
    for batch in BlockLoader(rows).in_order(EVALUATION_BATCH):
        x, ids = model.embed(batch), rows.ids[start : start + len(batch)]
        start += len(batch)
        for column, of in vectors.items():
            unknown = np.flatnonzero(ids[:, column] == 0)
            x[unknown, column] = of.of(ids[unknown])
        out.append(model.score(x)[:, 0].numpy())
    return np.concatenate(out).astype(np.float64)


def units_of(work: Path, logs: tuple[str, ...], seeds: Iterator[int] | range) -> Iterator[Unit]:
    """Every training of the logs, seed by seed."""
    for seed in seeds:
        for log in logs:
            for name in TRAINED:
                yield Handling(log, name, seed).unit(work)
