"""LR, FM and DeepFM folded into the embedding table: what is linear in the fields becomes a sum of table rows.

The first layer of an MLP and the sums of a factorisation machine are linear in the fields, one block of weights per field.
So the contribution of a value is a constant, computed once when the model is loaded; a row is then the sum of C table rows of W
= H1 + dim + 1 numbers (padded to whole cache lines) instead of a product with C * dim inputs. A path that drops values sums
other table rows, at the cost of one row. Exact up to the order of summation. The price is memory: W numbers per value instead
of D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, State
from thinktwice.models.blocks import in_blocks
from thinktwice.models.deepfm import DeepFM
from thinktwice.models.embedding import FieldEmbedding
from thinktwice.models.fm import FM
from thinktwice.models.lr import LR
from thinktwice.models.sequences import ListPooling, MeanPooling

MAX_BYTES = 256 << 20  # of a folded table; a larger one misses the cache on every row and is slower than the product
CHUNK = 65_536  # values folded at once


class Folded(Backend):
    """State: index [B, C] of table rows; with further fields also their vectors and the squares of these [B, 2 * (N - C) * D]."""

    name = "folded"

    def __init__(self, model: Backbone, table: Tensor | None, fill: Tensor) -> None:
        super().__init__(model, table, fill)
        if not can_fold(model):
            raise ValueError(f"{model.config.name} of this size cannot be folded: use another backend")
        self._first, deeper = _layers(model)
        self._width = 0 if self._first is None else self._first.out_features
        self._pairs = 0 if isinstance(model, LR) else model.dim
        self._total_width = _total_width(model)
        self._deeper = [(layer.bias, layer.weight.t().contiguous()) for layer in deeper]
        columns = len(model.fields.num_values)
        self._offsets = model.embedding.offsets
        self._fill_index = model.fields.num_rows + torch.arange(columns)
        self._table = torch.zeros(model.fields.num_rows + columns, self._total_width)
        values, used = model.embedding.table if table is None else table, self._width + self._pairs + 1
        for column, (start, size) in enumerate(zip(model.fields.offsets, model.fields.num_values, strict=True)):
            for first in range(start, start + size, CHUNK):
                rows = slice(first, min(first + CHUNK, start + size))
                self._table[rows, :used] = self._fold(values[rows], column)
        for column in range(columns):
            self._table[model.fields.num_rows + column, :used] = self._fold(fill[column : column + 1], column)[0]
        first_bias = torch.zeros(0) if self._first is None else self._first.bias
        bias = torch.cat([first_bias, torch.zeros(self._pairs), model.bias[None]])
        self._table[: model.fields.num_values[0], :used] += bias  # every row has one value of the first column
        self._table[model.fields.num_rows, :used] += bias
        self._out = model.out.weight.t().contiguous() if isinstance(model, DeepFM) else torch.zeros(0, 1)
        self._half = torch.full((self._pairs, 1), 0.5)
        self._pooling = [_Pooling.of(model.embedding, position) for position in range(len(model.fields.sequences))]
        self._counted = None if model.fields.counters is None else _Counted.of(model.embedding)
        self._lists = self._fold_lists()

    def read(self, batch: Batch) -> State:
        fields = self.model.fields
        index = batch.ids + self._offsets
        lists = [*(batch.sequences[n] for n in fields.sequences), *(batch.vectors[n] for n in fields.vectors)]
        lists += [batch.weights[n] for n in fields.weighted]
        if not lists and fields.counters is None:
            return (index,)
        x = None
        if lists and all(block.stride(0) == 0 for block in lists):  # one user, many items
            x = in_blocks(self._read_lists, *(block[:1] for block in lists), sizes=self.sizes)
        elif lists:
            x = in_blocks(self._read_lists, *lists, sizes=self.sizes)
        if fields.counters is not None:
            counters = batch.counters
            if counters is None:
                counters = torch.full((1, 1), torch.nan).expand(len(batch), len(fields.counters.means))
            assert self._counted is not None
            counted = in_blocks(self._counted, counters, sizes=self.sizes)
            x = counted if x is None else torch.cat([x.expand(len(batch), -1), counted], dim=1)
        assert x is not None
        return index, torch.cat([x, x * x], dim=1).expand(len(batch), -1)

    def score(self, state: State, kept: Tensor | None = None) -> Tensor:
        index = state[0]
        if kept is not None:
            index = torch.where(kept[:, : index.shape[1]], index, self._fill_index)
        total = _sums(self._table, index)  # [B, W]
        for lists in state[1:]:
            total.addmm_(lists, self._lists)
        last = self._width + self._pairs
        z = total[:, last : last + 1]
        if self._width:
            hidden = total[:, : self._width].relu()
            for bias, weight in self._deeper:
                hidden = torch.addmm(bias, hidden, weight).relu_()
            z = torch.addmm(z, hidden, self._out)
        if self._pairs:
            pooled = total[:, self._width : last]
            z = torch.addmm(z, pooled * pooled, self._half)
        return z[:, 0]

    def _read_lists(self, *lists: Tensor) -> Tensor:
        """Vectors of the sequences and vectors of a block of rows, side by side."""
        fields = self.model.fields
        weights = dict(zip(fields.weighted, lists[len(fields.sequences) + len(fields.vectors) :], strict=True))
        sequences = zip(self._pooling, fields.sequences, lists, strict=False)
        parts = [pool(index, weights.get(name)) for pool, name, index in sequences]
        if vectors := fields.vectors:
            named = dict(zip(vectors, lists[len(parts) : len(parts) + len(vectors)], strict=True))
            parts += [vector[:, 0] for vector in self.model.embedding.projected(named)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _fold_lists(self) -> Tensor:
        """Weights [2 * (N - C) * D, W] from the vectors of the other fields, and their squares, to their contribution."""
        model, dim, width = self.model, self.model.dim, self._width
        columns, lists = len(model.fields.num_values), model.num_fields - len(model.fields.num_values)
        out, last = torch.zeros(2, lists, dim + 1, self._total_width), width + self._pairs
        for position in range(lists):
            first = (columns + position) * dim
            if self._first is not None:
                out[0, position, :dim, :width] = self._first.weight[:, first : first + dim].t()
            out[0, position, dim, last] = 1.0
            if self._pairs:
                out[0, position, :dim, width:last] = torch.eye(dim)
                out[1, position, :dim, last] = -0.5
        return out.flatten(0, 2)

    def _fold(self, values: Tensor, column: int) -> Tensor:
        """Contribution of vectors [V, D] of a column to [first layer, sum of embeddings, first order - half the squares], as far
        as the model has them."""
        dim = self.model.dim
        embedding = values[:, :dim]
        parts = []
        if self._first is not None:
            parts.append(embedding @ self._first.weight[:, column * dim : (column + 1) * dim].t())
        if not self._pairs:
            return torch.cat([*parts, values[:, dim:]], dim=1)
        square = values[:, dim:] - 0.5 * (embedding * embedding).sum(dim=1, keepdim=True)
        return torch.cat([*parts, embedding, square], dim=1)


@dataclass(frozen=True)
class _Pooling:
    """The mean of the known values of one sequence, weighted if it has weights, or ``fill`` [D] without any; ``table`` [values, at
    least D + 1] is zero at padding and has a column of ones that counts the values."""

    table: Tensor
    fill: Tensor

    @staticmethod
    def of(embedding: FieldEmbedding, position: int) -> _Pooling:
        encoder = embedding.sequences[position]
        if isinstance(encoder, ListPooling):
            values: Tensor = encoder.values
        else:
            assert isinstance(encoder, MeanPooling)
            values = embedding.table[encoder.first_row : encoder.first_row + encoder.num_values]
        width = embedding.table.shape[1]
        table = torch.zeros(len(values), _aligned(width + 1))
        table[1:, :width] = values[1:]
        table[1:, width] = 1.0
        return _Pooling(table, embedding.extra_fill[position])

    def __call__(self, index: Tensor, weights: Tensor | None = None) -> Tensor:
        """[B, D] of index [B, L] and the weights [B, L] of the values."""
        total = _sums(self.table, index, weights)
        width = len(self.fill)
        count = total[:, width : width + 1]
        return torch.where(count > 0, total[:, :width] / count, self.fill)


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
            weight[:, columns, position] = layer.weight.t().view(2, len(columns), width)
            members[columns, position], sizes[position] = 1.0, float(len(columns))
        bias = torch.cat([layer.bias for layer in layers])
        fill = embedding.extra_fill[-len(layers) :].reshape(-1)
        shapes = (weight.view(2 * number, -1), bias, members.view(number, -1), sizes.view(-1), fill)
        return _Counted(embedding.scale, *shapes)

    def __call__(self, counters: Tensor) -> Tensor:
        """[B, G * D] of counters [B, K]."""
        values, unknown = self.scale(counters)
        missing = unknown.to(values.dtype)
        vectors = torch.addmm(self.bias, torch.cat([values, missing], dim=1), self.weight)
        return torch.where(missing @ self.members == self.sizes, self.fill, vectors)


def _sums(table: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums [B, W] of the rows of table [rows, W] at index [B, C], each times its weight; the bare operation, without the checks of its
    wrapper."""
    starts = torch.arange(0, index.numel(), index.shape[1])
    factors = None if weights is None else weights.reshape(-1)
    return torch.embedding_bag(table, index.reshape(-1), starts, False, 0, False, factors)[0]


def _aligned(width: int) -> int:
    """``width`` rounded up to whole cache lines: such rows are summed in half the time."""
    return -(-width // 16) * 16


def _layers(model: Backbone) -> tuple[nn.Linear | None, list[nn.Linear]]:
    """The first layer of the MLP, which is folded, and the others; none for a model without an MLP."""
    if not isinstance(model, DeepFM):
        return None, []
    first, *deeper = [layer for layer in model.mlp if isinstance(layer, nn.Linear)]
    return first, deeper


def _total_width(model: Backbone) -> int:
    """Numbers per value in the folded table."""
    first, _ = _layers(model)
    return _aligned((0 if first is None else first.out_features) + (0 if isinstance(model, LR) else model.dim) + 1)


def can_fold(model: Backbone) -> bool:
    """Whether the model is linear in the fields up to its first layer, with sequences that are means and values few enough."""
    if not isinstance(model, LR | FM | DeepFM) or not model.fields.num_values:
        return False
    if isinstance(model, DeepFM) and not model.config.hidden:
        return False
    if not all(isinstance(encoder, (MeanPooling, ListPooling)) for encoder in model.embedding.sequences):
        return False
    return 4 * _total_width(model) * (model.fields.num_rows + len(model.fields.num_values)) <= MAX_BYTES
