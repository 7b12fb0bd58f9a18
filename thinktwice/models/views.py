"""Views of rows that differ from their row in a few fields: what is linear in the fields is updated, not recomputed.

Shapes: U rows, P views of each, N fields, D = dim + 1 numbers per field, n of the fields may be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def additive_update(base: Tensor, delta: Tensor, dropped: Tensor) -> Tensor:
    """A sum over fields, updated for every view [U, P, W].

    Args:
        base: the sum for the whole row [U, W].
        delta: by how much each replaceable field changes it when it is replaced [U, n, W].
        dropped: how far each view replaces it, 0..1 [U, P, n].
    """
    return torch.baddbmm(base[:, None], dropped, delta)


@dataclass(frozen=True)
class Views:
    """P views of each of U rows.

    x [U, N, D] whole rows; fields [n] int64 distinct positions of the replaceable fields; own [U, n, D] their vectors in
    the row; change [U, n, D] what replacing them adds; dropped [U, P, n] 1 where a view replaces a field, 0 where it
    keeps it, a fraction where it mixes both.
    """

    x: Tensor
    fields: Tensor
    own: Tensor
    change: Tensor
    dropped: Tensor

    @staticmethod
    def of(x: Tensor, mask: Tensor, fill: Tensor, fields: Tensor) -> Views:
        """The views that ``mask`` [U, P, n] keeps of ``fields`` [n]; ``fill`` is [N, D] or [U, N, D]."""
        own = x.index_select(1, fields)
        return Views(x, fields, own, fill.index_select(-2, fields) - own, 1.0 - mask)

    def whole(self) -> Tensor:
        """The field vectors of every view, recomputed [U, P, N, D]."""
        return self._replaced(self.x, self.own, self.change)

    def flat(self) -> Tensor:
        """The embeddings of every view, recomputed [U, P, N * dim]."""
        return self._replaced(self.x[..., :-1], self.own[..., :-1], self.change[..., :-1]).flatten(2)

    def total(self) -> Tensor:
        """Sum of the field vectors of every view [U, P, D]."""
        return additive_update(self.x.sum(dim=1), self.change, self.dropped)

    def first_order(self) -> Tensor:
        """Sum of the first-order weights of every view [U, P, 1]."""
        return additive_update(self.x[..., -1:].sum(dim=1), self.change[..., -1:], self.dropped)

    def squares(self) -> Tensor:
        """Sum of the squared field vectors of every view [U, P, D]."""
        # (own + q change)^2 = own^2 + q (2 own change) + q^2 change^2: additive in q and q^2, fractions included
        delta = torch.cat([2.0 * self.own * self.change, self.change * self.change], dim=1)
        dropped = torch.cat([self.dropped, self.dropped * self.dropped], dim=2)
        return additive_update((self.x * self.x).sum(dim=1), delta, dropped)

    def linear(self, layer: nn.Module) -> Tensor:
        """``layer``, an ``nn.Linear``, of the flat embeddings of every view [U, P, H].

        The layer is applied once to every row and once to every replaceable field, never to a view.
        """
        assert isinstance(layer, nn.Linear)
        embedding = self.x[..., :-1]
        change = self.change[..., :-1].transpose(0, 1)  # [n, U, dim]
        blocks = layer.weight.view(-1, *embedding.shape[1:]).index_select(1, self.fields)  # [H, n, dim]
        delta = torch.bmm(change, blocks.permute(1, 2, 0)).transpose(0, 1)  # [U, n, H]
        return additive_update(layer(embedding.flatten(1)), delta, self.dropped)

    def mlp(self, layers: nn.Sequential) -> Tensor:
        """``layers`` of the flat embeddings of every view [U, P, H]: the first updated, the others recomputed."""
        if len(layers) == 0:
            return self.flat()
        first, *deeper = layers
        hidden = self.linear(first)
        for layer in deeper:
            hidden = layer(hidden)
        return hidden

    def _replaced(self, x: Tensor, own: Tensor, change: Tensor) -> Tensor:
        mixed = torch.addcmul(own[:, None], self.dropped[..., None], change[:, None])  # [U, P, n, D]
        views = x[:, None].expand(-1, self.dropped.shape[1], -1, -1).clone(memory_format=torch.contiguous_format)
        return views.index_copy_(2, self.fields, mixed)
