"""Factorisation machine: first-order weights and pairwise products of embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def field_sums(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings side by side [B, N * dim], sum of field vectors [B, D], and sum of their squares [B, D], of x [B, N, D]."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x[..., :-1].flatten(1), x.sum(dim=1), (x * x).sum(dim=1)
    flat, total, squares = _FieldSums.apply(x)
    return flat, total, squares


class _FieldSums(torch.autograd.Function):
    """Its gradient is written once, where autograd would write one per term and add them up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x[..., :-1].flatten(1), x.sum(dim=1), (x * x).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, flat: Tensor, total: Tensor, squares: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient = torch.addcmul(total[:, None], x, 2.0 * squares[:, None])
        gradient[..., :-1] += flat.view(*x.shape[:2], x.shape[2] - 1)
        return gradient
