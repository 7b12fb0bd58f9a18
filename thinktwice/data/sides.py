"""A request encoded in two parts: the values shared by its rows (user, context), and those of each row (the item).

A request is cheap because the user is encoded once instead of once per candidate, and items are encoded in advance.
Shapes: S shared columns, I item columns, S + I = C; n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from thinktwice.data.crosses import CrossIndex
from thinktwice.data.encoded import Batch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Side:
    """Encoded values of some of the model's fields.

    ids [n, S or I] int64 of the columns ``columns`` [S or I] of a batch, in order; sequences name -> [n, L] int64;
    vectors name -> [n, dim] float32; weights name of a list -> [n, L] float32.
    """

    columns: tuple[int, ...]
    ids: np.ndarray
    sequences: Mapping[str, np.ndarray] = field(default_factory=dict)
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Side:
        """The rows at ``rows`` [m], in that order, repeats included."""
        return Side(
            self.columns,
            self.ids.take(rows, axis=0),  # indexing takes twice as long
            {name: block.take(rows, axis=0) for name, block in self.sequences.items()},
            {name: block.take(rows, axis=0) for name, block in self.vectors.items()},
            {name: block.take(rows, axis=0) for name, block in self.weights.items()},
        )

    @staticmethod
    def stacked(parts: Sequence[Side]) -> Side:
        """All rows of ``parts``, which must have the same fields."""
        first = parts[0]
        return Side(
            first.columns,
            np.concatenate([part.ids for part in parts]),
            {name: np.concatenate([part.sequences[name] for part in parts]) for name in first.sequences},
            {name: np.concatenate([part.vectors[name] for part in parts]) for name in first.vectors},
            {name: np.concatenate([part.weights[name] for part in parts]) for name in first.weights},
        )


def join(shared: Side, own: Side, crosses: Sequence[CrossIndex] = ()) -> Batch:
    """The batch of n rows: the one row of ``shared`` joined with each of the n rows of ``own``, and the crosses between them.

    Raises:
        ValueError: ``shared`` is not one row.
    """
    import torch

    if len(shared) != 1:
        raise ValueError(f"the shared side must be one row, not {len(shared)}")
    rows = len(own)
    ids = np.empty((rows, len(shared.columns) + len(own.columns) + len(crosses)), np.int64)
    ids[:, _positions(shared.columns)] = shared.ids
    ids[:, _positions(own.columns)] = own.ids
    for cross in crosses:
        cross.fill(ids)
    # Expanded and not repeated: the stride shows readers that all rows share one.
    return Batch(
        torch.from_numpy(ids),
        _expanded(shared.sequences, rows) | {name: torch.from_numpy(block) for name, block in own.sequences.items()},
        _expanded(shared.vectors, rows) | {name: torch.from_numpy(block) for name, block in own.vectors.items()},
        weights=_expanded(shared.weights, rows) | {name: torch.from_numpy(w) for name, w in own.weights.items()},
    )


@lru_cache
def _positions(columns: tuple[int, ...]) -> np.ndarray:
    """The columns as an array, which numpy would otherwise make for every request."""
    return np.array(columns, np.intp)


def _expanded(blocks: Mapping[str, np.ndarray], rows: int) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(block).expand(rows, -1) for name, block in blocks.items()}
