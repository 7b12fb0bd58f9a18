"""Adam with L2 on the embedding table: dense for small tables, row by row for large ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam, SparseAdam

from thinktwice.train.joint import Trainee


class TableAdam:
    """One step for the whole model.

    A table of fewer than ``sparse_rows`` rows gets the L2 term on all rows at every step. A larger one is updated, and
    decays, only in the rows that the batch holds: a step then costs the batch, not the vocabulary.
    """

    def __init__(self, model: Trainee, *, rate: float, table_l2: float, sparse_rows: int) -> None:
        self.table = model.table
        self.l2 = table_l2
        self.sparse = model.fields.num_rows >= sparse_rows
        model.sparse_gradients = self.sparse
        groups = [{"params": list(model.dense_parameters()), "weight_decay": 0.0}]
        if not self.sparse:
            groups.append({"params": [model.table], "weight_decay": table_l2})
        self.optimizers: list[torch.optim.Optimizer] = [Adam(groups, lr=rate, fused=True)]
        if self.sparse:
            self.optimizers.append(SparseAdam([model.table], lr=rate))

    def step(self, loss: Tensor) -> None:
        """Back-propagate and update."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.sparse and self.l2 and self.table.grad is not None:
            gradient = self.table.grad.coalesce()
            rows = gradient.indices()[0]
            values = gradient.values() + self.l2 * self.table.detach()[rows]
            self.table.grad = torch.sparse_coo_tensor(
                gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
            )
        for optimizer in self.optimizers:
            optimizer.step()

    def set_rate(self, rate: float) -> None:
        """Learning rate of the next steps."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
