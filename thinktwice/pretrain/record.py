"""``training.json`` of a pre-trained model: its losses during training."""

from __future__ import annotations

from typing import ClassVar

from thinktwice.pretrain.config import PretrainConfig
from thinktwice.versioned import Record, ResultFile

TRAINING_FILE = "training.json"


class LossRecord(Record):
    """Mean losses since the previous record: of the label, and of every field by name."""

    epoch: float
    label: float
    fields: dict[str, float]


class PretrainRecord(ResultFile):
    """The content of the file.

    ``unigram_entropy`` of the values of each column, in nats: a model that has learned anything has a lower loss. Losses of
    ``sampled_losses`` only separate values of the same batch.
    """

    FORMAT: ClassVar[int] = 2

    seed: int
    torch: str
    curve: tuple[LossRecord, ...]
    unigram_entropy: dict[str, float]
    sampled_losses: tuple[str, ...]
    config: PretrainConfig
    rows: dict[str, int]
