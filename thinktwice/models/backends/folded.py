"""LR, FM and DeepFM folded into the embedding table: what is linear in the fields becomes a sum of table rows.

The first layer of an MLP and the sums of a factorisation machine are linear in the fields, one block of weights per field.
So the contribution of a value is a constant, computed once when the model is loaded; a row is then the sum of C table rows of W
= H1 + dim + 1 numbers (padded to whole cache lines) instead of a product with C * dim inputs. A path that drops values sums
other table rows, at the cost of one row. Exact up to the order of summation. The price is memory: W numbers per value instead
of D.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from thinktwice.data.encoded import Batch
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, State
from thinktwice.models.backends.lookup import OtherFields, aligned, sums
from thinktwice.models.deepfm import DeepFM
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
        self._offsets = model.embedding.offsets.numpy()
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
        self._others = OtherFields(model.embedding, values, MAX_BYTES)
        self._number = (model.num_fields - columns) * (model.dim + 1)
        self._lists = self._fold_lists()

    def read(self, batch: Batch) -> State:
        index = torch.from_numpy(batch.ids.numpy() + self._offsets)
        if not self._number:
            return (index,)
        parts = self._others(batch, batch.ids, self.sizes)
        lists, start = np.empty((max(map(len, parts)), 2 * self._number), np.float32), 0
        for part in parts:
            lists[:, start : start + part.shape[1]] = part
            start += part.shape[1]
        np.square(lists[:, :start], out=lists[:, start:])
        found = torch.from_numpy(lists)
        return index, found if len(lists) == len(index) else found.expand(len(index), -1)

    def score(self, state: State, kept: Tensor | None = None) -> Tensor:
        index = state[0]
        if kept is not None:
            index = torch.where(kept[:, : index.shape[1]], index, self._fill_index)
        total = sums(self._table, index)  # [B, W]
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


def _layers(model: Backbone) -> tuple[nn.Linear | None, list[nn.Linear]]:
    """The first layer of the MLP, which is folded, and the others; none for a model without an MLP."""
    if not isinstance(model, DeepFM):
        return None, []
    first, *deeper = [layer for layer in model.mlp if isinstance(layer, nn.Linear)]
    return first, deeper


def _total_width(model: Backbone) -> int:
    """Numbers per value in the folded table."""
    first, _ = _layers(model)
    return aligned((0 if first is None else first.out_features) + (0 if isinstance(model, LR) else model.dim) + 1)


def can_fold(model: Backbone) -> bool:
    """Whether the model is linear in the fields up to its first layer, with sequences that are means and values few enough."""
    if not isinstance(model, LR | FM | DeepFM) or not model.fields.num_values:
        return False
    if isinstance(model, DeepFM) and not model.config.hidden:
        return False
    if not all(isinstance(encoder, (MeanPooling, ListPooling)) for encoder in model.embedding.sequences):
        return False
    return 4 * _total_width(model) * (model.fields.num_rows + len(model.fields.num_values)) <= MAX_BYTES
