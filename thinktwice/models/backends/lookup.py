"""Field vectors of rows with few operations: the numbers of :class:`FieldEmbedding` up to the order of summation.

A request of one row costs its number of operations and not its arithmetic, so tables and weights are prepared when a model is
loaded, and what is no product is left to NumPy, whose calls are the shortest.

Shapes: B rows, N fields, C of them columns, D = dim + 1 numbers per field, at most L values per sequence, G groups of K counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Embedded, State
from thinktwice.models.blocks import in_blocks
from thinktwice.models.embedding import FieldEmbedding
from thinktwice.models.sequences import ListPooling, MeanPooling, TargetAttention

Floats = npt.NDArray[np.float32]
MAX_POOLED_BYTES = 64 << 20  # of the copy of a column whose values a sequence sums; else it reads the table itself


class Prepared(Embedded):
    """A backend of field vectors that are read by a :class:`Lookup`."""

    def __init__(self, model: Backbone, table: Tensor | None, fill: Tensor) -> None:
        super().__init__(model, table, fill)
        self._lookup = Lookup(model.embedding, table) if can_prepare(model.embedding) else None

    def read(self, batch: Batch) -> State:
        return super().read(batch) if self._lookup is None else (self._lookup(batch, self.sizes),)


def can_prepare(embedding: FieldEmbedding) -> bool:
    """Whether all sequence encoders are known here; a backbone of your own may have another."""
    return all(type(encoder) in (MeanPooling, ListPooling, TargetAttention) for encoder in embedding.sequences)


class Lookup:
    """Field vectors [B, N, D] of the rows of a batch, as :meth:`FieldEmbedding.forward` gives them with ``table``."""

    def __init__(self, embedding: FieldEmbedding, table: Tensor | None) -> None:
        table = embedding.table if table is None else table
        self._table: Floats = table.detach().numpy()
        self._offsets = embedding.offsets.numpy()
        self._fields = embedding.fields.num_fields
        self._others = OtherFields(embedding, table, MAX_POOLED_BYTES)

    def __call__(self, batch: Batch, sizes: tuple[int, ...]) -> Tensor:
        rows, columns, width = len(batch), len(self._offsets), self._table.shape[1]
        if columns == self._fields:
            return torch.from_numpy(self._table.take(batch.ids.numpy() + self._offsets, axis=0))
        if columns:
            index = np.zeros((rows, self._fields), np.int64)  # a place for every field: the others are written over it
            np.add(batch.ids.numpy(), self._offsets, out=index[:, :columns])
            x = self._table.take(index, axis=0)
        else:
            x = np.empty((rows, self._fields, width), np.float32)
        found, flat, start = torch.from_numpy(x), x.reshape(rows, -1), columns * width
        for part in self._others(batch, found[:, :columns], sizes):
            flat[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        return found


class OtherFields:
    """Vectors of the fields that are no columns: sequences, vectors, groups of counters.

    Args:
        table: [rows, D] of the columns, which target attention reads.
        max_bytes: of the copy of one column whose values a sequence contains.
    """

    def __init__(self, embedding: FieldEmbedding, table: Tensor, max_bytes: int) -> None:
        self._embedding, self._fields = embedding, embedding.fields
        encoders = [_sequence(embedding, table, position, max_bytes) for position in range(len(self._fields.sequences))]
        self._sequences = list(zip(self._fields.sequences, encoders, strict=True))
        self._counted = None if self._fields.counters is None else _Counted.of(embedding)

    def __call__(self, batch: Batch, columns: Tensor, sizes: tuple[int, ...]) -> list[Floats]:
        """Vectors of successive fields side by side, each [B, D times their number] or, where all rows share one value, [1, ...].

        Args:
            columns: vectors [B, C, D] of the columns; only target attention reads them.
            sizes: block sizes of products.
        """
        parts = [encode(batch, columns, sizes) for _, encode in self._sequences]
        if self._fields.vectors:
            values = [batch.vectors[name] for name in self._fields.vectors]
            if all(value.stride(0) == 0 for value in values):
                values = [value[:1] for value in values]
            parts.append(in_blocks(self._projected, *values, sizes=sizes).numpy())
        if self._counted is not None:
            counters = batch.counters
            if counters is None:  # all are unknown
                counters = torch.full((1, self._counted.number), torch.nan)
            parts.append(in_blocks(self._counted, counters, sizes=sizes).numpy())
        return parts

    def _projected(self, *values: Tensor) -> Tensor:
        parts = self._embedding.projected(dict(zip(self._fields.vectors, values, strict=True)))
        return torch.cat(parts, dim=1).flatten(1)


class _Sequence(Protocol):
    def __call__(self, batch: Batch, columns: Tensor, sizes: tuple[int, ...]) -> Floats:
        """Vectors [B, D] of one sequence, or [1, D] if all rows share it."""


def _sequence(embedding: FieldEmbedding, table: Tensor, position: int, max_bytes: int) -> _Sequence:
    encoder, fill = embedding.sequences[position], embedding.extra_fill.detach()[position]
    if isinstance(encoder, TargetAttention):
        fits = _Attention.copied(encoder, len(fill)) <= max_bytes
        return _Attention(embedding, table, encoder, fill) if fits else _Live(embedding, encoder, fill)
    assert isinstance(encoder, (MeanPooling, ListPooling))
    values = len(encoder.values) if isinstance(encoder, ListPooling) else encoder.num_values
    copied = 4 * aligned(len(fill) + 1) * values
    return (_Pooling if copied <= max_bytes else _Live)(embedding, encoder, fill)


class _Pooling:
    """The mean of the known values of one sequence, weighted if it has weights, or the fill [D] without any; the copied table [values,
    at least D + 1] is zero at padding and has a column of ones that counts the values."""

    def __init__(self, embedding: FieldEmbedding, encoder: MeanPooling | ListPooling, fill: Tensor) -> None:
        self._name, self._fill = encoder.name, fill.detach().numpy()
        self._weighted = encoder.name in embedding.fields.weighted
        if isinstance(encoder, ListPooling):
            values: Tensor = encoder.values
        else:
            values = embedding.table[encoder.first_row : encoder.first_row + encoder.num_values]
        self._width = embedding.table.shape[1]
        self._table = torch.zeros(len(values), aligned(self._width + 1))
        self._table[1:, : self._width] = values.detach()[1:]
        self._table[1:, self._width] = 1.0

    def __call__(self, batch: Batch, columns: Tensor, sizes: tuple[int, ...]) -> Floats:
        index, weights = batch.sequences[self._name], batch.weights[self._name] if self._weighted else None
        if index.stride(0) == 0 and (weights is None or weights.stride(0) == 0):  # one user, many items
            index, weights = index[:1], None if weights is None else weights[:1]
        total = sums(self._table, index, weights).numpy()
        width = self._width
        count = total[:, width : width + 1]
        if count.all():
            return np.asarray(total[:, :width] / count)
        known = count > 0
        mean = total[:, :width] / (count + ~known)
        mean[~known[:, 0]] = self._fill
        return np.asarray(mean)


class _Attention:
    """A :class:`TargetAttention` whose first layer is folded: it is linear in the target t, the value b, t - b and t * b, so only the
    part of t * b is a product; those of t and b are rows of tables [values, H]. The copied table [values, at least D] of the
    vectors is zero at padding."""

    def __init__(self, embedding: FieldEmbedding, table: Tensor, encoder: TargetAttention, fill: Tensor) -> None:
        self._name, self._column, self._fill = encoder.name, encoder.column, fill.numpy()
        first, *deeper = [layer for layer in encoder.unit if isinstance(layer, nn.Linear)]
        of_target, of_value, of_difference, of_product = first.weight.detach().chunk(4, dim=1)
        self._dim, self._product = of_target.shape[1], of_product.t().contiguous()
        self._deeper = [(layer.bias.detach(), layer.weight.detach().t().contiguous()) for layer in deeper]
        column = slice(encoder.first_row, encoder.first_row + encoder.num_values)
        targets, values = table.detach()[column], embedding.table.detach()[column]
        weights = (of_target + of_difference).t()
        self._of_target: Floats = torch.addmm(first.bias.detach(), targets[:, : self._dim], weights).numpy()
        self._of_value: Floats = (values[:, : self._dim] @ (of_value - of_difference).t()).numpy()
        self._values: Floats = values.numpy()
        self._table = torch.zeros(len(values), aligned(len(fill)))
        self._table[1:, : len(fill)] = values[1:]

    @staticmethod
    def copied(encoder: TargetAttention, width: int) -> int:
        """Bytes of the tables for vectors of this width."""
        first = encoder.unit[0]
        assert isinstance(first, nn.Linear)
        return 4 * (2 * first.out_features + aligned(width)) * encoder.num_values

    def __call__(self, batch: Batch, columns: Tensor, sizes: tuple[int, ...]) -> Floats:
        index = batch.sequences[self._name]
        target = columns[:, self._column, : self._dim]
        found = in_blocks(self._attended, batch.ids[:, self._column], target, index, sizes=sizes).numpy()
        known = index.numpy().any(axis=1, keepdims=True)
        return found if known.all() else np.where(known, found, self._fill)

    def _attended(self, ids: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Vectors [B, D] of targets, their values [B] and vectors [B, dim], and the values index [B, L]."""
        places = index.numpy()
        each = torch.from_numpy(self._values.take(places, axis=0))[..., : self._dim]
        product = (each * target[:, None]).view(-1, self._dim)
        hidden = torch.from_numpy(self._of_value.take(places, axis=0))
        hidden += torch.from_numpy(self._of_target.take(ids.numpy(), axis=0))[:, None]
        hidden = hidden.view(len(product), -1).addmm_(product, self._product)
        for bias, weight in self._deeper:
            hidden = torch.addmm(bias, hidden.relu_(), weight)
        return sums(self._table, index, hidden)[:, : len(self._fill)]


class _Live:
    """A sequence of a column too large to copy: its encoder reads the table itself."""

    def __init__(
        self, embedding: FieldEmbedding, encoder: MeanPooling | ListPooling | TargetAttention, fill: Tensor
    ) -> None:
        self._encoder, self._table, self._fill = encoder, embedding.table, fill
        self._weighted = encoder.name in embedding.fields.weighted

    def __call__(self, batch: Batch, columns: Tensor, sizes: tuple[int, ...]) -> Floats:
        index = batch.sequences[self._encoder.name]
        weights = [batch.weights[self._encoder.name]] if self._weighted else []
        return in_blocks(self._encoded, index, columns, *weights, sizes=sizes).numpy()

    def _encoded(self, index: Tensor, columns: Tensor, *weights: Tensor) -> Tensor:
        name = self._encoder.name
        rows = Batch(index, {name: index}, weights=dict.fromkeys([name], *weights) if weights else {})
        encoded = self._encoder(rows, columns, self._table, sparse=False)
        return torch.where((index != 0).any(dim=1, keepdim=True), encoded, self._fill)


@dataclass(frozen=True)
class _Counted:
    """Vectors of all groups of K counters in one product, side by side, G * D numbers: :meth:`FieldEmbedding.counted` with the
    layers in one matrix ``weight`` [2 K, G * D]. ``members`` [K, G * D] counts the unknown counters of a group, which has
    its ``fill`` [G * D] if these are all of its ``sizes`` [G * D]."""

    scale: nn.Module
    weight: Tensor
    bias: Tensor
    members: Tensor
    sizes: Tensor
    fill: Tensor

    @staticmethod
    def of(embedding: FieldEmbedding) -> _Counted:
        fields, layers = embedding.fields, [layer for layer in embedding.counters if isinstance(layer, nn.Linear)]
        assert fields.counters is not None and embedding.scale is not None
        number, width = len(fields.counters.means), embedding.table.shape[1]
        weight = torch.zeros(2, number, len(layers), width)
        members, sizes = torch.zeros(number, len(layers), width), torch.zeros(len(layers), width)
        for position, (group, layer) in enumerate(zip(fields.counter_groups, layers, strict=True)):
            columns = torch.tensor(group.columns)
            weight[:, columns, position] = layer.weight.detach().t().view(2, len(columns), width)
            members[columns, position], sizes[position] = 1.0, float(len(columns))
        bias = torch.cat([layer.bias.detach() for layer in layers])
        fill = embedding.extra_fill.detach()[-len(layers) :].reshape(-1)
        shapes = (weight.view(2 * number, -1), bias, members.view(number, -1), sizes.view(-1), fill)
        return _Counted(embedding.scale, *shapes)

    @property
    def number(self) -> int:
        return len(self.members)

    def __call__(self, counters: Tensor) -> Tensor:
        """[B, G * D] of counters [B, K]."""
        values, unknown = self.scale(counters)
        missing = unknown.to(values.dtype)
        vectors = torch.addmm(self.bias, torch.cat([values, missing], dim=1), self.weight)
        return torch.where(missing @ self.members == self.sizes, self.fill, vectors)


def sums(table: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums [B, W] of the rows of table [rows, W] at index [B, C], each times its weight; the bare operation, without the checks of its
    wrapper."""
    starts = _starts(*index.shape)
    factors = None if weights is None else weights.reshape(-1)
    return torch.embedding_bag(table, index.reshape(-1), starts, False, 0, False, factors)[0]


@lru_cache(maxsize=128)
def _starts(rows: int, length: int) -> Tensor:
    """First places [B] of the bags of an index [B, length]: every request needs them, few sizes are usual."""
    with torch.inference_mode(False):  # usable in both modes
        return torch.arange(0, rows * length, length)


def aligned(width: int) -> int:
    """``width`` rounded up to whole cache lines: such rows are summed in half the time."""
    return -(-width // 16) * 16
