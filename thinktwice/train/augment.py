"""Augmentation that makes training rows resemble test rows: values an earlier model would not have known become unknown.

Counts of earlier blocks of time correspond to counts at test time; leave-one-out counts replace them if a log has no usable
time (see :mod:`thinktwice.data.history`).

Every field, a user as a whole and an item as a whole can also be made unknown at any time: the model scores such rows with the
vectors of unknown values, which must be learned even if the train part contains none.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import Batch, EncodedRows, table_offsets
from thinktwice.data.history import counts_before, counts_without, time_blocks
from thinktwice.models.fields import FieldSpace
from thinktwice.train.config import Augmentation, FinetuneConfig


def keep_probability(counts: np.ndarray, kappa: float) -> Tensor:
    """Probability that a value with this count stays known, the square root of its reliability: float32, of the shape of
    ``counts``."""
    return torch.from_numpy(np.sqrt(counts / (counts + kappa)).astype(np.float32))


class Augmenter:
    """Makes parts of a training batch unknown.

    A share of the values of every field, and of all users and items with all their fields. ``mask_block`` also masks ids that
    were new or rare at the time, in unprotected fields; ``mask_loo`` those that are rare among all other rows.
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
        if kind != "none":
            self.keep, self.maskable = self._history(rows)

    def with_config(self, config: FinetuneConfig) -> Augmenter:
        """The same with another ``unknown_share``; the history of the rows is shared."""
        if config == self.config:
            return self
        other = copy.copy(self)
        other.config = config
        return other

    def __call__(self, batch: Batch, index: Tensor, generator: torch.Generator) -> Batch:
        """Augmented copy of a batch; ``index`` [B] are the rows' positions in the training part."""
        hidden = self._unknown(len(batch), generator)
        if self.kind != "none" and len(self.columns):
            hidden[:, self.columns] |= self._masked(index, generator)
        for column, first, second in self.fields.crosses:
            hidden[:, column] |= hidden[:, first] | hidden[:, second]
        positions = {name: position for position, name in enumerate(self.fields.names)}
        return Batch(
            batch.ids.masked_fill(hidden[:, : batch.ids.shape[1]], 0),
            {k: v.masked_fill(hidden[:, positions[k], None], 0) for k, v in batch.sequences.items()},
            {k: v.masked_fill(hidden[:, positions[k], None], math.nan) for k, v in batch.vectors.items()},
            None if batch.counters is None else self._counters(batch.counters, hidden, generator),
            batch.weights,
        )

    def _counters(self, counters: Tensor, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Counters [B, K], unknown in hidden fields, and all of them in a share of the rows: a server may have none, or stale ones."""
        dropped = torch.rand(len(counters), 1, generator=generator) < self.config.dropped_counters
        out = counters.masked_fill(dropped, math.nan)
        first = self.fields.num_fields - len(self.fields.counter_groups)
        for position, group in enumerate(self.fields.counter_groups):
            columns = torch.tensor(group.columns)
            out[:, columns] = out[:, columns].masked_fill(hidden[:, first + position, None], math.nan)
        return out

    def _unknown(self, rows: int, generator: torch.Generator) -> Tensor:
        """Fields [B, N] made unknown at random, so that the vectors of unknown values are learned."""
        share = self.config.unknown_share
        hidden = torch.rand(rows, self.fields.num_fields, generator=generator) < share
        for member in self.members:
            hidden |= (torch.rand(rows, generator=generator) < share)[:, None] & member
        return hidden

    def _history(self, rows: EncodedRows) -> tuple[Tensor, Tensor]:
        """Keep probability of the values of every row that may be masked [R, n], and which rows have a history [R]."""
        sizes, columns = self.fields.num_values, self.columns.numpy()
        if self.kind == "mask_loo":
            counts = counts_without(rows.ids, sizes)[:, columns]
            return keep_probability(counts, self.config.kappa), torch.ones(len(rows), dtype=torch.bool)
        block = time_blocks(rows.time, self.config.blocks)
        joint = rows.ids[:, columns] + table_offsets(sizes)[columns]
        counts = counts_before(rows.ids, block, sizes, self.config.blocks)[block[:, None], joint]
        return keep_probability(counts, self.config.kappa), torch.from_numpy(block >= self.config.skipped_blocks)

    def _masked(self, index: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(index), generator=generator) < self.config.masked_rows
        chosen &= self.maskable[index]
        keep = self.keep[index]
        excess = torch.rand(keep.shape, generator=generator) - keep
        excess += keep == 0  # never seen before: masked first if a row may lose only some of its fields
        excess.masked_fill_(~chosen[:, None], -1.0)
        if self.most < keep.shape[1]:
            limit = excess.topk(self.most + 1, dim=1).values[:, -1:]
            return (excess > 0) & (excess > limit)
        return excess > 0
