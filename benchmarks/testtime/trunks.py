"""Every trained network of the study, each trained once and kept on disk under the hash of its settings.

The table L2 is chosen first, on validation, per data set and backbone, with seed 0; all trunks except the over-trained one use
it. Epochs are those of the best evaluation on validation. The over-trained trunk has no L2 and keeps the weights that fit its
training rows best, like a sparse table without decay after several epochs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.testtime.distill import fit_distilled, mean_logit
from thinktwice.data.encoded import EncodedRows, count_values, table_offsets
from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import BundleError
from thinktwice.files import read_json, sha256_text, write_json
from thinktwice.models import (
    Backbone,
    BackboneConfig,
    Calibration,
    FieldSpace,
    ModelInfo,
    backbone_config,
    build_backbone,
)
from thinktwice.models.store import load_model, save_model
from thinktwice.stats.metrics import logloss
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import fit_calibration, logits_of
from thinktwice.train.members import MemberKind, fit_members
from thinktwice.train.run import train

L2_GRID = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
OVERTRAINED_EPOCHS = 3.0
DISTILLED_L2 = (1.0, 0.3)  # of the plain trunks' L2
FORMAT = 1


@dataclass(frozen=True)
class Setting:
    """How one trunk is trained; ``rare`` maps values with a smaller training count to unknown, in all parts."""

    backbone: str = "deepfm"
    seed: int = 0
    l2: float | None = None  # None: the tuned one
    augmentation: Augmentation = "none"
    unknown_share: float = 0.01
    dropout: float = 0.0
    wider: float = 1.0
    rare: int = 0
    overtrained: bool = False


@dataclass(frozen=True)
class Trunk:
    """A trained network with its Platt calibration on validation."""

    model: Backbone
    calibration: Calibration


class Trunks:
    """The trained networks of one data set. ``sizes`` are the model's, ``config`` the training's."""

    def __init__(self, data: TrainingSet, work: Path, sizes: BackboneConfig, config: FinetuneConfig) -> None:
        self.data, self.work, self.sizes, self.config = data, work, sizes, config
        self.fields = FieldSpace.of(data.schema, data.encoder)

    @cached_property
    def train_rows(self) -> EncodedRows:
        return self.data.part("train")

    @cached_property
    def valid_rows(self) -> EncodedRows:
        return self.data.part("valid")

    @cached_property
    def counts(self) -> np.ndarray:
        return count_values(self.train_rows.ids, self.fields.num_values)

    def rare_unknown(self, rows: EncodedRows, least: int) -> EncodedRows:
        """Rows in which unprotected values with a training count below ``least`` are unknown."""
        if least == 0:
            return rows
        known = self.counts[rows.ids + table_offsets(self.fields.num_values)] >= least
        known[:, np.asarray(self.fields.protected[: rows.ids.shape[1]], bool)] = True
        return replace(rows, ids=np.where(known, rows.ids, 0).astype(rows.ids.dtype))

    def tuned_l2(self, backbone: str) -> float:
        """The L2 with the lowest validation logloss under seed 0; the evaluations of the whole grid are recorded."""
        path = self._path("l2", {"backbone": backbone, "grid": L2_GRID}).with_suffix(".json")
        if not path.is_file():
            trials = {
                str(l2): min(look["valid_logloss"] for look in self._curve(Setting(backbone=backbone, l2=l2)))
                for l2 in L2_GRID
            }
            write_json(path, {"trials": trials, "chosen": float(min(trials, key=lambda k: trials[k]))})
        return float(read_json(path)["chosen"])

    def l2_trials(self, backbone: str) -> dict[str, float]:
        """Validation logloss of every L2 of the grid."""
        self.tuned_l2(backbone)
        path = self._path("l2", {"backbone": backbone, "grid": L2_GRID}).with_suffix(".json")
        return dict(read_json(path)["trials"])

    def get(self, setting: Setting) -> Trunk:
        """The trunk of a setting, trained if it is not on disk."""
        return self._load_or_train("trunk", self._resolved(setting).__dict__, lambda: [self._train(setting)[0]])[0]

    def plain(self, seed: int, backbone: str = "deepfm") -> Trunk:
        return self.get(Setting(backbone=backbone, seed=seed))

    def overtrained(self, seed: int, backbone: str = "deepfm") -> Trunk:
        return self.get(Setting(backbone=backbone, seed=seed, l2=0.0, overtrained=True))

    def members(self, kind: MemberKind, count: int, seed: int, backbone: str = "deepfm") -> list[Trunk]:
        """Trunks trained as members of one ensemble; those of kind ``own`` are the plain trunks of the following seeds."""
        if kind == "own":
            return [self.plain(seed + i, backbone) for i in range(count)]
        key = {"kind": kind, "count": count, "seed": seed, "backbone": backbone, "l2": self.tuned_l2(backbone)}

        def make() -> list[Backbone]:
            return fit_members(
                kind,
                self.train_rows,
                self.valid_rows,
                self.fields,
                self._sizes(Setting(backbone=backbone)),
                self.config,
                table_l2=self.tuned_l2(backbone),
                augmentation="none",
                count=count,
                seed=seed,
            )

        return self._load_or_train("members", key, make)

    def distilled(self, soft: float, teachers: int, seed: int, backbone: str = "deepfm") -> Trunk:
        """One trunk trained on the mean logit of ``teachers`` plain trunks with seeds from ``seed`` on.

        Softer targets need a weaker L2, so it is chosen separately on validation: that of the plain trunks or less.
        """
        key = {"soft": soft, "teachers": teachers, "seed": seed, "backbone": backbone, "l2": self.tuned_l2(backbone)}

        def make() -> list[Backbone]:
            models = [self.plain(seed + i, backbone).model for i in range(teachers)]
            made = [
                fit_distilled(
                    self.train_rows,
                    self.valid_rows,
                    self.fields,
                    self._sizes(Setting(backbone=backbone)),
                    self.config,
                    mean_logit(models, self.train_rows),
                    table_l2=share * self.tuned_l2(backbone),
                    augmentation="none",
                    soft=soft,
                    seed=seed,
                )
                for share in DISTILLED_L2
            ]
            return [min(made, key=self._valid_logloss)]

        return self._load_or_train("distilled", key, make)[0]

    def _resolved(self, setting: Setting) -> Setting:
        return setting if setting.l2 is not None else replace(setting, l2=self.tuned_l2(setting.backbone))

    def _sizes(self, setting: Setting) -> BackboneConfig:
        hidden = tuple(round(h * setting.wider) for h in self.sizes.hidden)
        change = {"name": setting.backbone, "dropout": setting.dropout, "hidden": hidden}
        return backbone_config(**self.sizes.model_dump() | change)

    def _train(self, setting: Setting) -> tuple[Backbone, list[dict[str, float]]]:
        setting = self._resolved(setting)
        assert setting.l2 is not None
        change: dict[str, Any] = {"unknown_share": setting.unknown_share}
        if setting.overtrained:
            change |= {"epochs": OVERTRAINED_EPOCHS}
        config = self.config.model_copy(update=change)
        rows = self.rare_unknown(self.train_rows, setting.rare)
        judged = rows if setting.overtrained else self.rare_unknown(self.valid_rows, setting.rare)
        if setting.overtrained:
            judged = judged.take(np.arange(0, len(judged), 10))
        model = build_backbone(self._sizes(setting), self.fields, seed=setting.seed)
        augmenter = Augmenter(setting.augmentation, rows, self.fields, config)
        done = train(
            model,
            augmenter,
            BlockLoader(rows),
            BlockLoader(judged),
            config,
            table_l2=setting.l2,
            epochs=config.epochs,
            seed=setting.seed,
        )
        return model, [look.__dict__ for look in done.curve]

    def _curve(self, setting: Setting) -> list[dict[str, float]]:
        """Training curve; the trunk is kept too, so that tuning trains nothing twice."""
        path = self._path("trunk", self._resolved(setting).__dict__)
        model, curve = self._train(setting)
        self._save(path, [model])
        return curve

    def _valid_logloss(self, model: Backbone) -> float:
        return logloss(self.valid_rows.label, logits_of(model, BlockLoader(self.valid_rows)))

    def _path(self, kind: str, key: dict[str, Any]) -> Path:
        settings = {"sizes": self.sizes.model_dump(), "config": self.config.model_dump(), "format": FORMAT}
        text = json.dumps([kind, key, settings], sort_keys=True, default=str)
        return self.work / "trunks" / f"{kind}-{sha256_text(text)[:16]}"

    def _load_or_train(self, kind: str, key: dict[str, Any], make: Callable[[], list[Backbone]]) -> list[Trunk]:
        path = self._path(kind, key)
        first = path / "0"
        if not (first / "model.json").is_file():
            self._save(path, make())
        out: list[Trunk] = []
        while (path / str(len(out)) / "model.json").is_file():
            try:
                model, info = load_model(path / str(len(out)))
            except BundleError:
                self._save(path, make())
                continue
            out.append(Trunk(model, info.calibration))
        for member in out[1:]:
            if torch.equal(member.model.embedding.table, out[0].model.embedding.table):
                member.model.embedding.table = out[0].model.embedding.table  # trained as one table
        return out

    def _save(self, path: Path, models: list[Backbone]) -> None:
        # The first folder is written last: its presence means that all are complete.
        for index in reversed(range(len(models))):
            z = logits_of(models[index], BlockLoader(self.valid_rows))
            calibration = fit_calibration(z, self.valid_rows.label)
            save_model(path / str(index), models[index], ModelInfo(stage="finetuned", calibration=calibration))
