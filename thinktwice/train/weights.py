"""Weights of training rows: those of the log, of clicks, and of recent rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import DataError
from thinktwice.train.config import FinetuneConfig

DAY = 86_400_000_000  # microseconds


def row_weights(rows: EncodedRows, config: FinetuneConfig) -> Tensor | None:
    """Weights [R] float32 with a mean of 1; None if all are 1.

    A weight for clicks shifts probabilities; the calibration on validation puts them back.

    Raises:
        DataError: a weight of the log is not a number of at least 0, or all are 0.
    """
    if config.click_weight == 1 and config.half_life_days is None and rows.weight is None:
        return None
    weight = np.where(rows.label > 0.5, config.click_weight, 1.0)
    if rows.weight is not None:
        weight = weight * _checked(rows.weight)
    if config.half_life_days is not None:
        age = (rows.time.max() - rows.time) / DAY
        weight = weight * np.exp2(-age / config.half_life_days)
    return torch.from_numpy((weight / weight.mean()).astype(np.float32))


def _checked(weight: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(wrong):
        raise DataError(
            f"the weight of row {wrong[0]} of the train part is {weight[wrong[0]]:g}, not a number of at least 0: build the training "
            "set again from a validated log"
        )
    if not weight.any():
        raise DataError(
            "all rows of the train part have the weight 0: correct the column of the weights, or name another"
        )
    return weight.astype(np.float64)
