"""Make training rows look like test rows: values become unknown where an earlier model would not have known them.

Time-ordered counts are what counts at test time: a value met for the first time in this block of time was unknown to
every model trained before, however often it comes in the block itself. Leave-one-out counts miss that (a new user's
rows come in one session).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import EncodedRows
from thinktwice.models.fields import FieldSpace
from thinktwice.train.config import Augmentation, FinetuneConfig


def time_blocks(time: np.ndarray, blocks: int) -> np.ndarray:
    """Block number 0..blocks-1 of every row [R]: equal shares of rows in time order, rows of one instant together."""
    edges = np.sort(time)[(np.arange(1, blocks) * len(time)) // blocks]
    return np.searchsorted(edges, time, side="right").astype(np.int64)


def counts_before(ids: np.ndarray, block: np.ndarray, num_values: tuple[int, ...], blocks: int) -> np.ndarray:
    """Rows that held each value in strictly earlier blocks: int64 [blocks, sum(num_values)]; unknown counts as 0."""
    parts = []
    for column, size in enumerate(num_values):
        flat = np.bincount(block * size + ids[:, column], minlength=blocks * size).reshape(blocks, size)
        flat[:, 0] = 0
        parts.append(np.cumsum(flat, axis=0) - flat)
    return np.concatenate(parts, axis=1)


class Augmenter:
    """Turns some ids of a training batch into 0 (unknown). Protected fields are left alone."""

    def __init__(self, kind: Augmentation, rows: EncodedRows, fields: FieldSpace, config: FinetuneConfig) -> None:
        self.kind = kind
        self.config = config
        columns = len(fields.num_values)
        self.columns = torch.tensor([c for c in range(columns) if not fields.protected[c]], dtype=torch.int64)
        self.most = max(1, math.floor(config.masked_fields * fields.num_fields))
        self.offsets = torch.tensor(fields.offsets, dtype=torch.int64)[self.columns]
        if kind == "mask_block":
            block = time_blocks(rows.time, config.blocks)
            counts = counts_before(rows.ids, block, fields.num_values, config.blocks)
            self.keep = torch.from_numpy(np.sqrt(counts / (counts + config.kappa)).astype(np.float32))
            self.block = torch.from_numpy(block)

    def __call__(self, ids: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented copy of ids [B, C]; ``index`` [B] are the rows' places in the training part."""
        if len(self.columns) == 0:
            return ids
        some = ids[:, self.columns]
        hidden = torch.rand(some.shape, generator=generator) < self.config.unknown_share
        if self.kind == "mask_block":
            hidden |= self._masked(some, self.block[index], generator)
        out = ids.clone()
        out[:, self.columns] = some.masked_fill(hidden, 0)
        return out

    def _masked(self, some: Tensor, block: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(some), generator=generator) < self.config.masked_rows
        chosen &= block >= self.config.skipped_blocks
        keep = self.keep[block[:, None], some + self.offsets]
        excess = torch.rand(some.shape, generator=generator) - keep
        excess += keep == 0  # never seen before: first in line when a row may lose only some of its fields
        excess.masked_fill_(~chosen[:, None], -1.0)
        if self.most < some.shape[1]:
            limit = excess.topk(self.most + 1, dim=1).values[:, -1:]
            return (excess > 0) & (excess > limit)
        return excess > 0
