"""Batches of a training part without work per row: tensors are indexed, in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import Batch, EncodedRows


class BlockLoader:
    """The rows of one part as tensors, ``with_counters`` for a model that reads them."""

    def __init__(self, rows: EncodedRows, *, with_counters: bool = False) -> None:
        self.ids = torch.from_numpy(rows.ids)
        self.sequences = {k: torch.from_numpy(v) for k, v in rows.sequences.items()}
        self.vectors = {k: torch.from_numpy(v) for k, v in rows.vectors.items()}
        self.label = torch.from_numpy(rows.label)
        self.counters: Tensor | None = None
        if with_counters:
            assert rows.evidence is not None
            self.counters = torch.from_numpy(np.array(rows.evidence.counters))

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, index: Tensor | slice) -> Batch:
        """The rows at ``index`` as model input."""
        return Batch(
            self.ids[index].long(),
            {k: v[index].long() for k, v in self.sequences.items()},
            {k: v[index] for k, v in self.vectors.items()},
            None if self.counters is None else self.counters[index],
        )

    def in_order(self, size: int) -> Iterator[Batch]:
        """All rows in their order."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless epochs: row indices [size] in random order; the incomplete last batch of an epoch is dropped."""
        size = min(size, len(self))
        while True:
            order = torch.randperm(len(self), generator=generator)
            for start in range(0, len(self) - size + 1, size):
                yield order[start : start + size]
