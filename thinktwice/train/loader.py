"""Batches of a training part without work per row: tensors are indexed, in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
        self.weights = {k: torch.from_numpy(v) for k, v in rows.weights.items()}
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
            {k: v[index] for k, v in self.weights.items()},
        )

    def in_order(self, size: int) -> Iterator[Batch]:
        """All rows in their order."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def shuffled(self, size: int, generator: torch.Generator) -> Shuffled:
        """Endless epochs of row indices [size]."""
        return Shuffled(len(self), min(size, len(self)), generator)


class Shuffled:
    """Endless epochs: row indices [size] in random order; the incomplete last batch of an epoch is dropped.

    The generator may be used by others between two batches. :meth:`state` is enough to continue in another process.
    """

    def __init__(self, rows: int, size: int, generator: torch.Generator) -> None:
        self.rows, self.size, self.generator = rows, size, generator
        self._at = rows  # the next batch begins an epoch
        self._order = torch.zeros(0, dtype=torch.int64)
        self._before = generator.get_state()  # of the generator, before the order of this epoch was drawn

    def __iter__(self) -> Shuffled:
        return self

    def __next__(self) -> Tensor:
        if self._at + self.size > self.rows:
            self._before = self.generator.get_state()
            self._order = torch.randperm(self.rows, generator=self.generator)
            self._at = 0
        start, self._at = self._at, self._at + self.size
        return self._order[start : self._at]

    def state(self) -> dict[str, Tensor]:
        """Position in the data, and states of the generator at the begin of the epoch and now."""
        return {"at": torch.tensor(self._at), "before": self._before, "now": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue where :meth:`state` was taken."""
        self._before, self._at = state["before"], int(state["at"])
        self.generator.set_state(self._before)
        self._order = torch.randperm(self.rows, generator=self.generator)
        self.generator.set_state(state["now"])
