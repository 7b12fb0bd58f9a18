"""``training_set.json``: the content of a training set, part by part."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from thinktwice.data.split_spec import PartName as PartName
from thinktwice.data.split_spec import SplitSpec
from thinktwice.versioned import Record, ResultFile, SparseRecord

INFO_FILE = "training_set.json"


class PartInfo(SparseRecord):
    """Size, window (first and last instant, ISO 8601 UTC), click rate and novelty of one part.

    ``unseen_share`` is the share of rows with an entity unseen in training, by entity (user, item). Rows without a user are not among
    them: ``anonymous_share`` is their share, in a log that may have such rows.
    """

    rows: int
    click_rate: float
    window: tuple[str, str]
    unseen_share: dict[str, float]
    anonymous_share: float | None = None


class Novelty(Record):
    """``unseen_share`` of validation beside that of test."""

    valid: dict[str, float]
    test: dict[str, float]


class Conservation(Record):
    """Rows into the split and out of it."""

    rows_in: int
    rows_out: int
    unique_row_ids: int


class CutVocabulary(Record):
    """How ``min_count`` or ``max_values`` limited a vocabulary: values ``kept`` and ``cut``, and the share of train rows (of
    elements, for a list) whose value counts as unknown."""

    kept: int
    cut: int
    share: float


class TrainingSetInfo(ResultFile):
    """The content of the file."""

    FORMAT: ClassVar[int] = 2

    schema_name: str
    split: SplitSpec
    rows: int
    parts: dict[PartName, PartInfo]
    conservation: Conservation
    cut: Annotated[dict[str, CutVocabulary], Field(default_factory=dict)]  # by field

    def novelty(self) -> Novelty:
        return Novelty(valid=self.parts["valid"].unseen_share, test=self.parts["test"].unseen_share)
