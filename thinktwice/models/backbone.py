"""The contract of all models: rows become field vectors once, then any number of masked views of them is scored.

Shapes: B rows, P paths (masked views) of a row, N fields in model order, D = dim + 1 numbers per field: an embedding of
``dim`` and, last, the first-order weight of the value. H is the width of the hidden state that pre-training reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.models.fields import FieldSpace

if TYPE_CHECKING:
    from collections.abc import Iterator


class BackboneConfig(BaseModel):
    """Architecture and sizes of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["deepfm", "dcnv2"] = "deepfm"
    dim: int = Field(default=16, ge=1, le=512)
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    cross_layers: int = Field(default=2, ge=1, le=8)  # dcnv2 only
    init_sd: float = Field(default=0.05, gt=0.0)  # of the embedding table


class Backbone(nn.Module, ABC):
    """Base of all models. A subclass gives ``hidden_width``, :meth:`trunk` and :meth:`head`.

    All categorical and numeric fields share one table of ``sum(num_values)`` rows; row 0 of a field is its learned
    vector for unknown and masked values. Sequences are means over the rows of the field they hold.
    """

    hidden_width: int  # H

    def __init__(self, config: BackboneConfig, fields: FieldSpace) -> None:
        super().__init__()
        self.config = config
        self.fields = fields
        self.num_fields = fields.num_fields
        self.dim = config.dim
        width = config.dim + 1
        self.table = nn.Parameter(torch.randn(fields.num_rows, width) * config.init_sd)
        self.extra_fill = nn.Parameter(torch.randn(fields.num_fields - len(fields.num_values), width) * config.init_sd)
        self.projections = nn.ModuleList(nn.Linear(dim, width) for dim in fields.vector_dims)
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("offsets", torch.tensor(fields.offsets, dtype=torch.int64), persistent=False)
        self.offsets: Tensor
        self.sparse_gradients = False  # the trainer sets it for tables too large for dense updates

    def rows(self, joint: Tensor) -> Tensor:
        """Table rows [..., D] at joint indices of any shape."""
        return F.embedding(joint, self.table, sparse=self.sparse_gradients)

    def embed(self, batch: Batch) -> Tensor:
        """Field vectors X [B, N, D]."""
        parts = [self.rows(batch.ids + self.offsets)]
        for place, (name, of) in enumerate(zip(self.fields.sequences, self.fields.sequence_of, strict=True)):
            offset = self.fields.offsets[self.fields.columns.index(of)]
            index = batch.sequences[name]
            pooled = F.embedding_bag(
                index + offset, self.table, mode="mean", padding_idx=offset, sparse=self.sparse_gradients
            )
            known = (index != 0).any(dim=1, keepdim=True)
            parts.append(torch.where(known, pooled, self.extra_fill[place])[:, None])
        start = len(self.fields.sequences)
        for place, name in enumerate(self.fields.vectors):
            vector = batch.vectors[name]
            known = ~vector.isnan().any(dim=1, keepdim=True)
            projected = self.projections[place](torch.where(known, vector, 0.0))
            parts.append(torch.where(known, projected, self.extra_fill[start + place])[:, None])
        return torch.cat(parts, dim=1)

    def fill(self) -> Tensor:
        """The learned vector of an unknown or masked value, per field [N, D]."""
        return torch.cat([self.rows(self.offsets), self.extra_fill])

    def score(self, x: Tensor, mask: Tensor | None = None, fill: Tensor | None = None) -> Tensor:
        """Logits [B, P] of the views of x [B, N, D] that ``mask`` [B, P, N] keeps.

        A mask entry of 1 keeps the field, 0 puts ``fill`` ([N, D] or [B, N, D], default :meth:`fill`) in its place, a
        fraction mixes both. Without a mask P is 1 and nothing is replaced.
        """
        if mask is None:
            return self.head(self.trunk(x))[:, None]
        fill = self.fill() if fill is None else fill
        kept = mask[..., None]  # [B, P, N, 1]
        views = kept * x[:, None] + (1.0 - kept) * (fill[:, None] if fill.dim() == 3 else fill)
        flat = views.flatten(0, 1)
        return self.head(self.trunk(flat)).view(mask.shape[0], mask.shape[1])

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of whole rows."""
        return self.score(self.embed(batch))[:, 0]

    @abstractmethod
    def trunk(self, x_masked: Tensor) -> Tensor:
        """Hidden state [B, H] of field vectors [B, N, D]."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits [B] from the hidden state [B, H]."""

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but the table."""
        return (p for name, p in self.named_parameters() if name != "table")


def mlp(width: int, hidden: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear, ReLU (and dropout) layers from ``width`` to ``hidden[-1]``."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)
