"""``training.json`` of a fine-tuned model: settings tried and chosen, and the results."""

from __future__ import annotations

from typing import ClassVar, Literal

from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.versioned import Record, ResultFile

TRAINING_FILE = "training.json"


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

    init: Literal["pretrained", "random"]
    seed: int
    torch: str
    chosen: ChosenRecord
    trials: tuple[TrialRecord, ...]
    curve: tuple[EvalRecord, ...]
    valid: Reached
    config: FinetuneConfig
    rows: dict[str, int]
