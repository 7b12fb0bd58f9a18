"""Splits of a log into train, validation and test: by time (default) or at random, seeded and independent of row order."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from thinktwice.choices import SplitKind
from thinktwice.data.row_ids import row_numbers
from thinktwice.frozen import Frozen
from thinktwice.xxh64 import xxh64_of_integers

PARTS: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")


class SplitSpec(Frozen):
    """How to split. Shares are of rows; train gets the remainder of ``valid`` and ``test``. ``seed`` is used by the random
    split only."""

    kind: SplitKind = "time"
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_train(self) -> SplitSpec:
        if self.valid + self.test >= 1:
            raise ValueError(
                f"valid {self.valid} and test {self.test} leave nothing to train on: choose smaller shares"
            )
        return self


def assign_split(event_time: np.ndarray, row_id: np.ndarray, spec: SplitSpec) -> np.ndarray:
    """Part of every row as an index into :data:`PARTS`.

    Args:
        event_time: [R] int64 microseconds.
        row_id: [R] strings of 16 hex digits, unique; the random split is a seeded hash of them.
        spec: kind, shares and seed.

    Returns:
        [R] int8. In a time split all rows of one instant fall into the later part, so that no instant straddles a boundary.
    """
    rows = len(event_time)
    codes = np.zeros(rows, np.int8)
    if rows == 0:
        return codes
    if spec.kind == "time":
        ordered = np.sort(event_time)
        valid_from = ordered[min(int(rows * (1 - spec.valid - spec.test)), rows - 1)]
        test_from = ordered[min(int(rows * (1 - spec.test)), rows - 1)]
        codes[event_time >= valid_from] = 1
        codes[event_time >= test_from] = 2
        return codes
    draw = xxh64_of_integers(row_numbers(row_id), spec.seed % 2**64) / 2.0**64
    codes[draw >= 1 - spec.valid - spec.test] = 1
    codes[draw >= 1 - spec.test] = 2
    return codes
