"""``training.json`` of a fine-tuned model: settings tried and chosen, and the results."""

from __future__ import annotations

from typing import ClassVar, Literal

from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.versioned import Record, ResultFile

TRAINING_FILE = "training.json"
PRETRAINING_FILE = (
    "pretraining.json"  # the record of the pre-training that the model started from, as pre-training wrote it
)

Init = Literal["pretrained", "random", "continued"]  # continued: from the model of an earlier bundle


class EvalRecord(Record):
    """One evaluation on validation during training."""

    epoch: float
    train_logloss: float
    valid_logloss: float
    valid_auc: float | None  # None: one class only


class CandidateRecord(Record):
    """Settings that were tried."""

    table_l2: float
    augmentation: Augmentation
    unknown_share: float | None = None  # None: that of the settings
    length: float | None = None  # epochs of the run; None: those of the settings


class ChosenRecord(CandidateRecord):
    """The settings that were kept, and the epochs until the weights that were kept."""

    epochs: float


class TrialRecord(Record):
    """Result of one candidate in its short run."""

    candidate: CandidateRecord
    best: EvalRecord
    chosen: bool


class Reached(Record):
    """The calibrated model on validation rows."""

    logloss: float
    auc: float | None  # None: one class only


class FinetuneRecord(ResultFile):
    """The content of the file; ``rows`` by part."""

    FORMAT: ClassVar[int] = 2

    init: Init
    seed: int
    torch: str
    chosen: ChosenRecord
    trials: tuple[TrialRecord, ...]
    curve: tuple[EvalRecord, ...]
    valid: Reached
    config: FinetuneConfig
    rows: dict[str, int]

    @property
    def chosen_settings(self) -> FinetuneConfig:
        """The settings with the length and the share of unknown values that were chosen."""
        own = {"unknown_share": self.chosen.unknown_share, "epochs": self.chosen.length}
        return self.config.model_copy(update={name: value for name, value in own.items() if value is not None})
