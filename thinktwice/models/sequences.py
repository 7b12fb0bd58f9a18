"""Sequence encoders: a user's last items, or any other list of values, as one vector.

Shapes: B rows, at most L values per sequence, C columns, D = dim + 1 numbers per field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.models.fields import FieldSpace
from thinktwice.models.lookup import means_of, rows_of
from thinktwice.schema.weights import SMALLEST


class SequenceEncoder(nn.Module, ABC):
    """Encodes one sequence. A subclass adds its parameters and defines :meth:`forward`.

    Args:
        fields: of the model.
        name: the sequence.

    Attributes:
        column: position of the column whose values the sequence contains.
        first_row: first row, in the joint table, of that column; it represents padding.
        num_values: rows of that column.
    """

    def __init__(self, fields: FieldSpace, name: str) -> None:
        super().__init__()
        column = fields.columns.index(fields.sequence_of[fields.sequences.index(name)])
        self.name, self.column = name, column
        self.first_row, self.num_values = fields.offsets[column], fields.num_values[column]

    @abstractmethod
    def forward(self, batch: Batch, columns: Tensor, table: Tensor, *, sparse: bool) -> Tensor:
        """Vectors [B, D]. Those of rows with an empty sequence are not used.

        Args:
            batch: encoded rows; ``batch.sequences[self.name]`` [B, L] contains values of the column, 0 for padding.
            columns: vectors [B, C, D] of the columns of each row, for target attention.
            table: joint embedding table [rows, D].
            sparse: whether gradients of the table are to be sparse.
        """


class ListPooling(nn.Module):
    """The mean of vectors of its own for the values of a list, ``values`` [V, D], weighted if the list has weights; row 0 is padding
    and not used."""

    def __init__(self, fields: FieldSpace, name: str, width: int, init_sd: float) -> None:
        super().__init__()
        size = fields.values_of_sequences[fields.sequences.index(name)]
        self.name, self.weighted = name, name in fields.weighted
        self.values = nn.Parameter(torch.randn(size, width) * init_sd)

    def forward(self, batch: Batch, columns: Tensor, table: Tensor, *, sparse: bool) -> Tensor:
        """See :class:`SequenceEncoder`; only ``batch`` is read."""
        index = batch.sequences[self.name]
        if not self.weighted:
            return means_of(self.values, index, 0)
        weights = batch.weights[self.name]
        total = F.embedding_bag(index, self.values, mode="sum", padding_idx=0, per_sample_weights=weights)
        # A masked element is padding and leaves its weight behind.
        return total / (weights * (index != 0)).sum(dim=1, keepdim=True).clamp_min(SMALLEST)


class MeanPooling(SequenceEncoder):
    """The mean of the table rows of the values."""

    def forward(self, batch: Batch, columns: Tensor, table: Tensor, *, sparse: bool) -> Tensor:
        index, first = batch.sequences[self.name], self.first_row
        return means_of(table, index + first, first, sparse_gradient=sparse)


class TargetAttention(SequenceEncoder):
    """The sum of the values, each weighted by an MLP over the row's own value of the column t, the value b, t - b and t * b.

    The weights are not normalised, as in DIN: their sum says how much of the history concerns the target. Padding has weight 0.
    """

    def __init__(self, fields: FieldSpace, name: str, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__(fields, name)
        layers: list[nn.Module] = []
        width = 4 * dim
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        self.unit = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, batch: Batch, columns: Tensor, table: Tensor, *, sparse: bool) -> Tensor:
        index = batch.sequences[self.name]
        values = rows_of(table, index + self.first_row, sparse_gradient=sparse)  # [B, L, D]
        target = columns[:, self.column, None, :-1].expand(-1, index.shape[1], -1)
        each = values[..., :-1]
        weight = self.unit(torch.cat([target, each, target - each, target * each], dim=-1))  # [B, L, 1]
        return (weight * (index != 0)[..., None] * values).sum(dim=1)
