"""The trained models that validation chooses from, opened once and passed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from thinktwice.errors import BundleError
from thinktwice.files import sha256_file
from thinktwice.models.absent import is_absent
from thinktwice.models.backbone import Backbone
from thinktwice.models.store import WEIGHTS_FILE, ModelInfo, load_model
from thinktwice.testtime.report import TrunkName
from thinktwice.train.record import TRAINING_FILE, EvalRecord, FinetuneRecord
from thinktwice.versioned import read_result


@dataclass(frozen=True, eq=False)
class Trunk:
    """A fine-tuned model of a folder. Parts that only some callers need are read on first use."""

    folder: Path
    model: Backbone
    info: ModelInfo

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights."""
        return sha256_file(self.folder / WEIGHTS_FILE)

    @cached_property
    def training(self) -> FinetuneRecord | None:
        """The record of its training; None for a folder without one.

        Raises:
            BundleError: the record is damaged.
        """
        path = self.folder / TRAINING_FILE
        return read_result(path, FinetuneRecord, BundleError, "train the model again") if path.is_file() else None

    @property
    def curve(self) -> tuple[EvalRecord, ...]:
        """The evaluations of its training; empty if the folder has no record of it."""
        return () if self.training is None else self.training.curve


Trunks = Mapping[TrunkName, Trunk]


def open_trunks(plain_dir: Path | str, pretrained_dir: Path | str | None) -> dict[TrunkName, Trunk]:
    """Load the models, the plain one first; without pre-training there is no other.

    Raises:
        BundleError: a model is missing or damaged.
    """
    folders: dict[TrunkName, Path] = {"plain": Path(plain_dir)}
    if pretrained_dir is not None and not is_absent(pretrained_dir):
        folders["pretrained"] = Path(pretrained_dir)
    return {name: Trunk(folder, *load_model(folder)) for name, folder in folders.items()}
