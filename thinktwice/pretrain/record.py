"""``training.json`` of a pre-trained model: its losses on the way."""

from __future__ import annotations

from typing import ClassVar

from thinktwice.pretrain.config import PretrainConfig
from thinktwice.versioned import Record, ResultFile

TRAINING_FILE = "training.json"


class LossRecord(Record):
    """Mean losses of one stretch of training: of the label, and of every field by its name."""

    epoch: float
    label: float
    fields: dict[str, float]


class PretrainRecord(ResultFile):
    """The content of the file.

    ``unigram_entropy`` of the values of each column in nats, which a loss beats that learned anything; columns of
    ``sampled_losses`` tell values from those of the same batch alone.
    """

    FORMAT: ClassVar[int] = 2

    seed: int
    torch: str
    curve: tuple[LossRecord, ...]
    unigram_entropy: dict[str, float]
    sampled_losses: tuple[str, ...]
    config: PretrainConfig
    rows: dict[str, int]
