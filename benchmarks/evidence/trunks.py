"""Every trained trunk of the study, kept on disk and not trained again: the tuned trunk, those of its later blocks, today's default
with statistics of whole days, and a trunk that reads the counters itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.evidence.data import DAYS, DELAYS, LOGS, load
from benchmarks.evidence.kept import Kept, code_hash
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.splits import PARTS
from thinktwice.data.training_set import TrainingSet
from thinktwice.data.training_set_info import PartName
from thinktwice.models import Backbone, FieldSpace, load_model
from thinktwice.models.store import ModelInfo, save_model
from thinktwice.selection.trunks import Trunk
from thinktwice.testtime.evidence.correction import Standard
from thinktwice.train.finetune import finetune, fit
from thinktwice.train.later_blocks import ScoredBlock, later_blocks
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of
from thinktwice.train.tune import TuningCandidate

FIRST = next(iter(DELAYS))
Logits = np.ndarray
CODE = code_hash(
    "benchmarks/evidence/trunks.py",
    "benchmarks/evidence/data.py",
    "thinktwice/data/encoder.py",
    "thinktwice/data/instant",
    "thinktwice/models/deepfm.py",
    "thinktwice/models/embedding.py",
    "thinktwice/train/later_blocks.py",
    "thinktwice/train/run.py",
    "thinktwice/train/loop.py",
    "thinktwice/train/optimizer.py",
    "thinktwice/train/tune.py",
)


@dataclass(frozen=True)
class Scores:
    """Logits of the earlier validation rows, on which everything is calibrated, and of the test rows."""

    fit: Logits
    test: Logits


class Trunks:
    """The trunks of one log, trained when they are first asked for."""

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.log, self.work = name, LOGS[name], work
        self.kept = Kept(work / name, f"{CODE} {self.log.sizes!r} {self.log.training!r}")

    def data(self, variant: str = FIRST) -> TrainingSet:
        """The training set of a label delay, or of :data:`DAYS`."""
        if variant not in self._sets:
            self._sets[variant] = load(self.name, self.work, variant)
        return self._sets[variant]

    @cached_property
    def _sets(self) -> dict[str, TrainingSet]:
        return {}

    def fit_rows(self, variant: str = FIRST) -> EncodedRows:
        """The earlier half of validation."""
        rows = self.data(variant).part("valid")
        return rows.take(np.arange(len(rows) // 2))

    def test_rows(self, variant: str = FIRST) -> EncodedRows:
        return self.data(variant).part("test")

    def trunk(self, seed: int, variant: str = FIRST) -> Trunk:
        """The tuned trunk of a seed; of :data:`DAYS` the one of today's default."""
        kind = "default" if variant == DAYS else "trunk"
        folder = self.kept.path(f"{kind}-{seed}")
        if not folder.is_dir():
            finetune(self.data(variant).folder, folder, self.log.sizes, self.log.training, seed=seed)
        return Trunk(folder, *load_model(folder))

    def scores(self, seed: int, variant: str = FIRST) -> Scores:
        """Logits of a trunk."""

        def compute() -> dict[str, np.ndarray]:
            model = self.trunk(seed, variant).model
            return {"fit": logits(model, self.fit_rows(variant)), "test": logits(model, self.test_rows(variant))}

        kind = "default" if variant == DAYS else "trunk"
        return Scores(**self.kept.arrays(f"{kind}-scores-{seed}", compute))

    def blocks(self, seed: int) -> list[ScoredBlock]:
        """The scored later blocks of the trunk of a seed."""

        def compute() -> dict[str, np.ndarray]:
            trunk, data = self.trunk(seed), self.data()
            assert trunk.training is not None
            found = later_blocks(
                data.part("train"),
                data.part("valid"),
                trunk.model.fields,
                trunk.model.config,
                trunk.training.config,
                TuningCandidate(trunk.training.chosen.table_l2, trunk.training.chosen.augmentation),
                split=self.log.blocks,
                seed=seed,
                stage="bench",
            )
            return {f"{key}{n}": value for n, block in enumerate(found) for key, value in vars(block).items()}

        arrays = self.kept.arrays(f"blocks-{seed}", compute)
        return [
            ScoredBlock(*(arrays[f"{key}{n}"] for key in ("rows", "trained_on", "logits")))
            for n in range(len(arrays) // 3)
        ]

    def with_counters(self, seed: int, delay: str) -> Scores:
        """Logits of a trunk that reads the counters of its rows as further inputs."""

        def compute() -> dict[str, np.ndarray]:
            data = self.data(delay)
            groups = counter_groups(data)
            fields = FieldSpace.of(data.schema, data.encoder)
            names = tuple(groups)
            fields = fields.model_copy(
                update={
                    "names": fields.names + names,
                    "kinds": fields.kinds + ("vector",) * len(names),
                    "entities": fields.entities + ("context",) * len(names),
                    "protected": fields.protected + (True,) * len(names),
                    "vector_dims": fields.vector_dims + tuple(2 * len(c) for c in groups.values()),
                }
            )
            train, valid, test = (with_vectors(data, part, groups) for part in PARTS)
            done = fit(train, valid, fields, self.log.sizes, self.log.training, seed=seed)
            save_model(
                self.kept.path(f"in-trunk-{delay}-{seed}"),
                done.model,
                ModelInfo(stage="finetuned", calibration=done.calibration),
            )
            return {
                "fit": logits(done.model, valid.take(np.arange(len(valid) // 2))),
                "test": logits(done.model, test),
            }

        return Scores(**self.kept.arrays(f"in-trunk-scores-{delay}-{seed}", compute))

    def perform(self, kind: str, seed: int, delay: str = FIRST) -> None:
        """Train what one unit of work needs."""
        if kind == "trunk":
            self.scores(seed)
        elif kind == "default":
            self.scores(seed, DAYS)
        elif kind == "blocks":
            self.blocks(seed)
        else:
            self.with_counters(seed, delay)


def counter_groups(data: TrainingSet) -> dict[str, np.ndarray]:
    """Columns of the counters of users, of items, and of crossed values."""
    scale = data.counter_scale
    assert scale is not None
    crossed = np.array(["_x_" in name for name in scale.names])
    user = np.array([name.startswith("user_") for name in scale.names])
    masks = {"user_counters": user & ~crossed, "item_counters": ~user & ~crossed, "crossed_counters": crossed}
    return {name: np.flatnonzero(mask) for name, mask in masks.items() if mask.any()}


def with_vectors(data: TrainingSet, part: PartName, groups: dict[str, np.ndarray]) -> EncodedRows:
    """The rows of a part; their standardised counters, and which of them are unknown, are vectors of the row."""
    rows, counters, scale = data.part(part), data.counters(part), data.counter_scale
    assert counters is not None and scale is not None
    counters = np.asarray(counters)
    standard = Standard(np.asarray(scale.means, np.float32), np.asarray(scale.sds, np.float32))
    values, unknown = standard(counters), np.isnan(counters).astype(np.float32)
    vectors = {name: np.concatenate([values[:, c], unknown[:, c]], axis=1) for name, c in groups.items()}
    return replace(rows, vectors=rows.vectors | vectors)


def logits(model: Backbone, rows: EncodedRows) -> Logits:
    return logits_of(model, BlockLoader(rows)).astype(np.float64)
