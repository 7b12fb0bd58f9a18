"""Factorisation machine: first-order weights and pairwise products of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from thinktwice.models.backbone import Backbone
from thinktwice.models.config import FMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.views import Views


class FM(Backbone):
    """Hidden state: [sum of pairwise products per embedding dimension, sum of first-order weights].

    Rendle, "Factorization Machines", ICDM 2010. We differ in one thing: a sequence, a vector and a group of counters are each
    one field with one embedding, instead of one feature per value.
    """

    config_class = FMConfig

    def __init__(self, config: FMConfig, fields: FieldSpace) -> None:
        super().__init__(config, fields)
        self.hidden_width = config.dim + 1

    def trunk(self, x_masked: Tensor) -> Tensor:
        return torch.cat(second_order(x_masked.sum(dim=1), (x_masked * x_masked).sum(dim=1)), dim=1)

    def trunk_paths(self, views: Views) -> Tensor:
        return torch.cat(second_order(views.total(), views.squares()), dim=2)

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.sum(dim=1) + self.bias


def second_order(total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Pairwise products [..., dim] and the sum of first-order weights [..., 1], from the sums of field vectors and of their
    squares [..., D]."""
    return 0.5 * (total * total - squares)[..., :-1], total[..., -1:].contiguous()  # cat is slow if any part is strided
