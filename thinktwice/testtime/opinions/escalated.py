"""Input and output of all second opinions: the uncertain rows of a request, and their new logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, Embedded, State
from thinktwice.models.blocks import batch_in_blocks


@dataclass(frozen=True)
class EscalatedRows:
    """U rows: ``batch`` of their values, the backend's ``state`` of them, base logit ``z0``, support ``r`` [U, N],
    fields ``kept`` [U, N] bool by the base pass, ``missing`` support [U], ``depth`` [U] of the look in 0..1, ``row_hash`` [U];
    ``maskable_fields`` [n]
    positions of the unprotected fields."""

    backend: Backend
    batch: Batch
    state: State
    z0: np.ndarray
    r: np.ndarray
    kept: np.ndarray
    missing: np.ndarray
    depth: np.ndarray
    row_hash: np.ndarray
    maskable_fields: np.ndarray

    @property
    def model(self) -> Backbone:
        return self.backend.model

    @property
    def fill(self) -> torch.Tensor:
        """Vectors [N, D] that replace dropped values."""
        return self.backend.fill

    @cached_property
    def x(self) -> torch.Tensor:
        """Field vectors [U, N, D] of the base pass, before a filter."""
        if isinstance(self.backend, Embedded):
            return self.state[0]
        return batch_in_blocks(lambda rows: self.model.embed(rows, self.backend.table), self.batch)


@dataclass(frozen=True)
class SecondPass:
    """Final logit [U] float64 and the further forward passes [U] that it took."""

    z: np.ndarray
    passes: np.ndarray
