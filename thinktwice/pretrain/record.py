"""``training.json`` of a pre-trained model: its losses during training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from thinktwice.pretrain.config import PretrainConfig
from thinktwice.versioned import Record, ResultFile

TRAINING_FILE = "training.json"


class LossRecord(Record):
    """Mean losses since the previous record: of the label, and of every field by name."""

    epoch: float
    label: float
    fields: dict[str, float]
    weights: dict[str, float] = Field(default_factory=dict)  # of the fields, where they are learned


class DifficultyRecord(Record):
    """How hard a field was to restore, as a share of its entropy, in the first batch and at the end; its weight at the end, and the
    weight to which the losses at the end would lead."""

    start: float
    end: float
    weight: float
    equilibrium: float


class PretrainRecord(ResultFile):
    """The content of the file.

    ``unigram_entropy`` of the values of each column, in nats: a model that has learned anything has a lower loss. Losses of
    ``sampled_losses`` only separate values of the same batch. ``by_class``: mean loss of the fields of rows of a class under the
    token of each class and a hidden one.
    """

    FORMAT: ClassVar[int] = 2

    seed: int
    torch: str
    curve: tuple[LossRecord, ...]
    unigram_entropy: dict[str, float]
    sampled_losses: tuple[str, ...]
    config: PretrainConfig
    rows: dict[str, int]
    kind: Literal["dgenctr", "hetegenctr"] = "dgenctr"
    difficulties: dict[str, DifficultyRecord] = Field(default_factory=dict)
    by_class: dict[str, dict[str, float]] = Field(default_factory=dict)
