"""Field embedding: one vector per field of a row, the only input of a trunk.

Shapes: B rows, N fields, C of them columns (categorical and numeric), D = dim + 1 numbers per field: an embedding of ``dim`` and,
last, the first-order weight of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.data.instant.stored import CLIP
from thinktwice.models.fields import CounterFields, FieldSpace
from thinktwice.models.lookup import rows_of
from thinktwice.models.sequences import ListPooling, MeanPooling, SequenceEncoder


class FieldEmbedding(nn.Module):
    """Field vectors of rows, from four parts in the order of the fields: columns, sequences, vectors, groups of counters.

    Models that share an embedding share the object: ``member.embedding = model.embedding``.

    Attributes:
        table: joint table [rows, D] of the values of all columns; the first row of a column is the learned vector of an
            unknown or masked value.
        sequences: one :class:`~thinktwice.models.sequences.SequenceEncoder` per sequence, over rows of the table, or a
            :class:`~thinktwice.models.sequences.ListPooling` with vectors of its own.
        projections: one linear layer per vector.
        counters: one linear layer per group of counters, over their standardised values and which of them are unknown.
        extra_fill: the learned vectors [N - C, D] of an empty sequence, of a missing vector, and of a group without a known
            counter.
        offsets: first table row of each column, int64 [C].
        sparse_gradients: whether gradients of the table are sparse; set while a table too large for dense updates is
            trained.
    """

    def __init__(
        self,
        fields: FieldSpace,
        dim: int,
        init_sd: float,
        sequence_encoder: Callable[[FieldSpace, str], SequenceEncoder] = MeanPooling,
    ) -> None:
        super().__init__()
        width = dim + 1
        self.fields = fields
        self.table = nn.Parameter(torch.randn(fields.num_rows, width) * init_sd)
        self.extra_fill = nn.Parameter(torch.randn(fields.num_fields - len(fields.num_values), width) * init_sd)
        self.projections = nn.ModuleList(nn.Linear(size, width) for size in fields.vector_dims)
        self.sequences = nn.ModuleList(
            ListPooling(fields, name, width, init_sd) if of == name else sequence_encoder(fields, name)
            for name, of in zip(fields.sequences, fields.sequence_of, strict=True)
        )
        self.counters = nn.ModuleList(nn.Linear(2 * len(group.columns), width) for group in fields.counter_groups)
        self.scale = None if fields.counters is None else _Scale(fields.counters)
        self.register_buffer("offsets", torch.tensor(fields.offsets, dtype=torch.int64), persistent=False)
        self.offsets: Tensor
        self.sparse_gradients = False

    def rows(self, joint: Tensor) -> Tensor:
        """Table rows [..., D] at joint indices of any shape."""
        return rows_of(self.table, joint, sparse_gradient=self.sparse_gradients)

    def forward(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Field vectors X [B, N, D].

        Args:
            batch: encoded rows.
            table: table [rows, D] for the columns, such as :meth:`gated`, instead of the learned one. Sequences always read the
            learned one.
        """
        joint = batch.ids + self.offsets
        columns = self.rows(joint) if table is None else F.embedding(joint, table)
        parts = [columns, *self._encoded(batch, columns), *self.projected(batch.vectors)]
        return torch.cat([*parts, *self.counted(batch.counters, len(batch))], dim=1)

    def _encoded(self, batch: Batch, columns: Tensor) -> list[Tensor]:
        """Field vectors [B, 1, D] of the sequences of a batch."""
        parts = []
        for position, (name, encoder) in enumerate(zip(self.fields.sequences, self.sequences, strict=True)):
            encoded = encoder(batch, columns, self.table, sparse=self.sparse_gradients)
            known = (batch.sequences[name] != 0).any(dim=1, keepdim=True)
            parts.append(torch.where(known, encoded, self.extra_fill[position])[:, None])
        return parts

    def projected(self, vectors: Mapping[str, Tensor]) -> list[Tensor]:
        """Field vectors [B, 1, D] of the vectors of a batch."""
        parts = []
        start = len(self.fields.sequences)
        for position, name in enumerate(self.fields.vectors):
            vector = vectors[name]
            known = ~vector.isnan().any(dim=1, keepdim=True)
            projected = _linear(self.projections[position], torch.where(known, vector, 0.0))
            parts.append(torch.where(known, projected, self.extra_fill[start + position])[:, None])
        return parts

    def counted(self, counters: Tensor | None, rows: int) -> list[Tensor]:
        """Field vectors [B, 1, D] of the groups of counters [B, K]; None: all are unknown."""
        if self.scale is None:
            return []
        if counters is None:
            counters = self.scale.means.new_full((rows, len(self.scale.means)), torch.nan)
        values, unknown = self.scale(counters)
        parts = []
        start = len(self.fields.sequences) + len(self.fields.vectors)
        for position, layer in enumerate(self.counters):
            columns = self.scale.columns(position)
            missing = unknown[:, columns]
            vector = _linear(layer, torch.cat([values[:, columns], missing.to(values.dtype)], dim=1))
            known = ~missing.all(dim=1, keepdim=True)
            parts.append(torch.where(known, vector, self.extra_fill[start + position])[:, None])
        return parts

    def fill(self) -> Tensor:
        """The learned vector of an unknown or masked value, per field [N, D]."""
        return torch.cat([self.rows(self.offsets), self.extra_fill])

    @torch.no_grad()
    def gated(self, keep: Tensor) -> Tensor:
        """The table [rows, D] with each row moved towards the fill of its column, the column's first row.

        ``keep`` [rows]: 1 leaves a row as it is, 0 makes it the fill, a fraction mixes both. A lookup in this table equals
        masking the values one by one, and costs nothing per request.
        """
        sizes = torch.tensor(self.fields.num_values, dtype=torch.int64, device=self.offsets.device)
        fill = self.table[self.offsets.repeat_interleave(sizes)]
        return torch.lerp(fill, self.table, keep[:, None])


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer of x [B, K], filled up with zeros to whole 16 bytes per row: on some processors the kernels for few
    outputs round the rows of another width by their place in memory."""
    assert isinstance(layer, nn.Linear)
    missing = -x.shape[1] % 4
    return F.linear(F.pad(x, (0, missing)), F.pad(layer.weight, (0, missing)), layer.bias) if missing else layer(x)


class _Scale(nn.Module):
    """Standardises counters [B, K]: standard deviations from their means, clipped at 4, 0 where unknown. It is part of the
    description of a model and not of its weights."""

    def __init__(self, fields: CounterFields) -> None:
        super().__init__()
        self.register_buffer("means", torch.tensor(fields.means, dtype=torch.float32), persistent=False)
        self.register_buffer("sds", torch.tensor(fields.sds, dtype=torch.float32), persistent=False)
        self.means: Tensor
        self.sds: Tensor
        for position, group in enumerate(fields.groups):
            self.register_buffer(f"columns_{position}", torch.tensor(group.columns), persistent=False)

    def columns(self, group: int) -> Tensor:
        """Positions of the counters of a group."""
        return self.get_buffer(f"columns_{group}")

    def forward(self, counters: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised counters [B, K], and which of them are unknown."""
        unknown = counters.isnan()
        return ((counters - self.means) / self.sds).clamp(-CLIP, CLIP).masked_fill(unknown, 0.0), unknown
