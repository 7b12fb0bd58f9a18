"""Lookups in an embedding table with a fast gradient on the CPU.

The gradient of a lookup adds the gradients of all places that read a row. That is the product of a sparse matrix with one entry
per place and the gradients, which SciPy computes in one pass over the places, several times as fast as torch's kernels (which sort
the places of a bag, or pass over all of them for every range of rows) and always in the same order.

Shapes: V rows of the table, D numbers per row, B rows of a batch, L places in each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def rows_of(table: Tensor, index: Tensor, *, sparse_gradient: bool = False) -> Tensor:
    """Rows [..., D] of ``table`` [V, D] at an ``index`` of any shape."""
    if sparse_gradient or not _is_trained_on_cpu(table):
        return F.embedding(index, table, sparse=sparse_gradient)
    found: Tensor = _Rows.apply(index, table)
    return found


def means_of(table: Tensor, index: Tensor, padding: int, *, sparse_gradient: bool = False) -> Tensor:
    """Mean [B, D] of the rows of ``table`` [V, D] at each ``index`` [B, L] that is not ``padding``; 0 if all are."""
    if sparse_gradient or not _is_trained_on_cpu(table):
        return F.embedding_bag(index, table, mode="mean", padding_idx=padding, sparse=sparse_gradient)
    found: Tensor = _Means.apply(index, padding, table)
    return found


def _is_trained_on_cpu(table: Tensor) -> bool:
    return table.requires_grad and torch.is_grad_enabled() and table.device.type == "cpu"


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, table: Tensor) -> Tensor:
        ctx.index, ctx.num_rows = index, len(table)
        return F.embedding(index, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        index = ctx.index.reshape(-1).numpy()
        starts = np.arange(len(index) + 1, dtype=index.dtype)
        read_by = sparse.csc_matrix((_ones(index, gradient), index, starts), shape=(ctx.num_rows, len(index)))
        return None, torch.from_numpy(read_by @ gradient.reshape(len(index), gradient.shape[-1]).numpy())


class _Means(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, padding: int, table: Tensor) -> Tensor:
        places = index.numpy()
        known = places != padding
        number = known.sum(axis=1)
        starts = np.concatenate([[0], np.cumsum(number)])
        chosen = places[known]
        ctx.reads = sparse.csr_matrix((_ones(chosen, table), chosen, starts), shape=(len(places), len(table)))
        ctx.number = torch.from_numpy(np.maximum(number, 1)).to(table.dtype)[:, None]
        return torch.from_numpy(ctx.reads @ table.detach().numpy()) / ctx.number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, torch.from_numpy(ctx.reads.T @ (gradient / ctx.number).numpy())


def _ones(places: np.ndarray, like: Tensor) -> np.ndarray:
    return np.ones(len(places), torch.empty(0, dtype=like.dtype).numpy().dtype)
