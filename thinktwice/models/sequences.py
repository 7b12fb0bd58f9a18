"""Sequence encoders: a user's last items, or any other list of values, as one vector.

Shapes: B rows, at most L values per sequence, C columns, D = dim + 1 numbers per field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.models.fields import FieldSpace


class SequenceEncoder(nn.Module, ABC):
    """Encodes one sequence. A subclass adds its parameters and defines :meth:`forward`.

    Args:
        fields: of the model.
        name: the sequence.

    Attributes:
        first_row: first row, in the joint table, of the column whose values the sequence contains; it represents padding.
        num_values: rows of that column.
    """

    def __init__(self, fields: FieldSpace, name: str) -> None:
        super().__init__()
        column = fields.columns.index(fields.sequence_of[fields.sequences.index(name)])
        self.name = name
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


class MeanPooling(SequenceEncoder):
    """The mean of the table rows of the values."""

    def forward(self, batch: Batch, columns: Tensor, table: Tensor, *, sparse: bool) -> Tensor:
        index, first = batch.sequences[self.name], self.first_row
        return F.embedding_bag(index + first, table, mode="mean", padding_idx=first, sparse=sparse)
