"""Make training rows look like test rows: values become unknown where an earlier model would not have known them.

Time-ordered counts are what counts at test time: a value met for the first time in this block of time was unknown to
every model trained before, however often it comes in the block itself. Leave-one-out counts miss that (a new user's
rows come in one session).

Every field, a user as a whole and an item as a whole can also come unknown whatever the time: the model answers such rows
with the vectors for unknown values, which must be learned although the train part may hold none.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import Batch, EncodedRows
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
    """Makes parts of a training batch unknown.

    A share of the values of every field, and of all users and items with all their fields. ``mask_block`` besides masks
    the ids that were new or rare at the time, in the fields that are not protected.
    """

    def __init__(self, kind: Augmentation, rows: EncodedRows, fields: FieldSpace, config: FinetuneConfig) -> None:
        self.kind = kind
        self.config = config
        self.fields = fields
        self.members = [
            torch.tensor([e == entity for e in fields.entities])
            for entity in ("user", "item")
            if entity in fields.entities
        ]
        columns = len(fields.num_values)
        self.columns = torch.tensor([c for c in range(columns) if not fields.protected[c]], dtype=torch.int64)
        self.most = max(1, math.floor(config.masked_fields * fields.num_fields))
        self.offsets = torch.tensor(fields.offsets, dtype=torch.int64)[self.columns]
        if kind == "mask_block":
            block = time_blocks(rows.time, config.blocks)
            counts = counts_before(rows.ids, block, fields.num_values, config.blocks)
            self.keep = torch.from_numpy(np.sqrt(counts / (counts + config.kappa)).astype(np.float32))
            self.block = torch.from_numpy(block)

    def __call__(self, batch: Batch, index: Tensor, generator: torch.Generator) -> Batch:
        """Augmented copy of a batch; ``index`` [B] are the rows' places in the training part."""
        hidden = self._unknown(len(batch), generator)
        if self.kind == "mask_block" and len(self.columns):
            hidden[:, self.columns] |= self._masked(batch.ids[:, self.columns], self.block[index], generator)
        places = {name: place for place, name in enumerate(self.fields.names)}
        return Batch(
            batch.ids.masked_fill(hidden[:, : batch.ids.shape[1]], 0),
            {k: v.masked_fill(hidden[:, places[k], None], 0) for k, v in batch.sequences.items()},
            {k: v.masked_fill(hidden[:, places[k], None], math.nan) for k, v in batch.vectors.items()},
        )

    def _unknown(self, rows: int, generator: torch.Generator) -> Tensor:
        """Which fields [B, N] are unknown for no other reason than to be learned."""
        share = self.config.unknown_share
        hidden = torch.rand(rows, self.fields.num_fields, generator=generator) < share
        for member in self.members:
            hidden |= (torch.rand(rows, generator=generator) < share)[:, None] & member
        return hidden

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
