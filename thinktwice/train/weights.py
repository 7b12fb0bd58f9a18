"""Weights of training rows: of clicks, and of recent rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import EncodedRows
from thinktwice.train.config import FinetuneConfig

DAY = 86_400_000_000  # microseconds


def row_weights(rows: EncodedRows, config: FinetuneConfig) -> Tensor | None:
    """Weights [R] float32 with a mean of 1; None if all are 1.

    A weight for clicks shifts probabilities; the calibration on validation puts them back.
    """
    if config.click_weight == 1 and config.half_life_days is None:
        return None
    weight = np.where(rows.label > 0.5, config.click_weight, 1.0)
    if config.half_life_days is not None:
        age = (rows.time.max() - rows.time) / DAY
        weight = weight * np.exp2(-age / config.half_life_days)
    return torch.from_numpy((weight / weight.mean()).astype(np.float32))
