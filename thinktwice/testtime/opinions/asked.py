"""The unsure rows of a request as every kind of second opinion gets them, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone


@dataclass(frozen=True)
class Asked:
    """U rows: ``batch`` of their values, field vectors ``x`` [U, N, D] of the base pass (before a filter), vectors ``fill``
    [N, D] for dropped values, base logit ``z0``, support ``r`` [U, N], ``kept`` [U, N] bool by the base pass, ``missing``
    support [U], ``wanted`` passes [U], ``row_hash`` [U]; ``open_fields`` [n] places of the unprotected fields."""

    model: Backbone
    batch: Batch
    x: torch.Tensor
    fill: torch.Tensor
    z0: np.ndarray
    r: np.ndarray
    kept: np.ndarray
    missing: np.ndarray
    wanted: np.ndarray
    row_hash: np.ndarray
    open_fields: np.ndarray


@dataclass(frozen=True)
class Opinion:
    """Final logit [U] float64 and the further forward passes [U] that it took."""

    z: np.ndarray
    passes: np.ndarray
