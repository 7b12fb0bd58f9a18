"""The contract of all models: rows become field vectors once, then any number of masked views of them is scored.

Shapes: B rows, P paths (masked views) of a row, N fields in model order, D = dim + 1 numbers per field: an embedding of
``dim`` and, last, the first-order weight of the value. H is the width of the hidden state that pre-training reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.models.fields import FieldSpace
from thinktwice.models.views import Views

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


BACKBONES: dict[str, type[Backbone]] = {}
GROUP = "thinktwice.backbones"  # entry points by which an installed package offers its own


def register_backbone(name: str, kind: type[Backbone]) -> None:
    """Make a backbone of your own available under a name, to recipes and to the loading of bundles in this process.

    A bundle holds weights and the name, never code. A server finds the class where the package that has it is installed and
    declares it under the entry point group ``thinktwice.backbones``.

    Raises:
        ValueError: another class has that name.
    """
    if BACKBONES.setdefault(name, kind) is not kind:
        raise ValueError(f"the backbone {name!r} exists already: choose another name")


def _known(name: str) -> str:
    if name not in BACKBONES:
        for point in entry_points(group=GROUP, name=name):
            register_backbone(name, point.load())
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown, known are {', '.join(sorted(BACKBONES))}")
    return name


class BackboneConfig(BaseModel):
    """Architecture and sizes of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_known)] = "deepfm"
    dim: int = Field(default=16, ge=1, le=512)
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(default=(128, 64), max_length=32)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    cross_layers: int = Field(default=2, ge=1, le=8)  # dcnv2 only
    attention_layers: int = Field(default=2, ge=1, le=8)  # autoint only
    attention_heads: int = Field(default=2, ge=1, le=16)  # autoint only
    attention_width: int = Field(default=16, ge=1, le=256)  # autoint only: numbers per field and head
    init_sd: float = Field(default=0.05, gt=0.0, le=1e3)  # of the embedding table


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
        first = dict(zip(fields.columns, fields.offsets, strict=True))
        self.sequence_offsets = tuple(first[of] for of in fields.sequence_of)  # first row of the column each one holds
        self.sparse_gradients = False  # the trainer sets it for tables too large for dense updates

    def rows(self, joint: Tensor) -> Tensor:
        """Table rows [..., D] at joint indices of any shape."""
        return F.embedding(joint, self.table, sparse=self.sparse_gradients)

    def embed(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Field vectors X [B, N, D].

        ``table`` [rows, D], such as :meth:`gated_table`, stands in for the joint table at the categorical and numeric
        fields; sequences keep pooling the learned one.
        """
        joint = batch.ids + self.offsets
        columns = self.rows(joint) if table is None else F.embedding(joint, table)
        return torch.cat([columns, *self._embed_sequences(batch), *self.embed_vectors(batch.vectors)], dim=1)

    def _embed_sequences(self, batch: Batch) -> list[Tensor]:
        parts = []
        for place, (name, offset) in enumerate(zip(self.fields.sequences, self.sequence_offsets, strict=True)):
            index = batch.sequences[name]
            pooled = F.embedding_bag(
                index + offset, self.table, mode="mean", padding_idx=offset, sparse=self.sparse_gradients
            )
            known = (index != 0).any(dim=1, keepdim=True)
            parts.append(torch.where(known, pooled, self.extra_fill[place])[:, None])
        return parts

    def embed_vectors(self, vectors: Mapping[str, Tensor]) -> list[Tensor]:
        """Field vectors [B, 1, D] of the vectors of a batch."""
        parts = []
        start = len(self.fields.sequences)
        for place, name in enumerate(self.fields.vectors):
            vector = vectors[name]
            known = ~vector.isnan().any(dim=1, keepdim=True)
            projected = self.projections[place](torch.where(known, vector, 0.0))
            parts.append(torch.where(known, projected, self.extra_fill[start + place])[:, None])
        return parts

    def fill(self) -> Tensor:
        """The learned vector of an unknown or masked value, per field [N, D]."""
        return torch.cat([self.rows(self.offsets), self.extra_fill])

    @torch.no_grad()
    def gated_table(self, keep: Tensor) -> Tensor:
        """The joint table [rows, D] with each row moved towards the fill of its field, its first row.

        ``keep`` [rows]: 1 leaves a row as it is, 0 makes it the fill, a fraction mixes both. Looking values up here is
        the same as masking them one by one, and costs nothing per request.
        """
        sizes = torch.tensor(self.fields.num_values, dtype=torch.int64, device=self.offsets.device)
        fill = self.table[self.offsets.repeat_interleave(sizes)]
        return torch.lerp(fill, self.table, keep[:, None])

    def score(self, x: Tensor, mask: Tensor | None = None, fill: Tensor | None = None) -> Tensor:
        """Logits [B, P] of the views of x [B, N, D] that ``mask`` [B, P, N] keeps.

        A mask entry of 1 keeps the field, 0 puts ``fill`` ([N, D] or [B, N, D], default :meth:`fill`) in its place, a
        fraction mixes both. Without a mask P is 1 and nothing is replaced.
        """
        if mask is None:
            return self.head(self.trunk(x))[:, None]
        fill = self.fill() if fill is None else fill
        views = torch.lerp(fill[:, None] if fill.dim() == 3 else fill, x[:, None], mask[..., None])  # [B, P, N, D]
        flat = views.flatten(0, 1)
        return self.head(self.trunk(flat)).view(mask.shape[0], mask.shape[1])

    def score_paths(self, x: Tensor, mask: Tensor, fill: Tensor, fields: Tensor) -> Tensor:
        """Logits [U, P] of views of x [U, N, D] in which only ``fields`` [n] int64, distinct, may be replaced.

        The same as :meth:`score` to rounding, with less work. ``mask`` [U, P, n] speaks of ``fields`` alone and in
        their order, all others are kept; ``fill`` is [N, D] or [U, N, D].
        """
        hidden = self.trunk_paths(Views.of(x, mask, fill, fields))
        return self.head(hidden.flatten(0, 1)).view(mask.shape[0], mask.shape[1])

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of whole rows."""
        return self.score(self.embed(batch))[:, 0]

    @abstractmethod
    def trunk(self, x_masked: Tensor) -> Tensor:
        """Hidden state [B, H] of field vectors [B, N, D]."""

    def trunk_paths(self, views: Views) -> Tensor:
        """Hidden states [U, P, H] of the views. A subclass that can update instead of recompute overrides it."""
        return self.trunk(views.whole().flatten(0, 1)).unflatten(0, views.dropped.shape[:2])

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
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers)
