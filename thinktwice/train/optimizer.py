"""Adam with L2 on the embedding table: dense for small tables, sparse by row for large ones.

The arithmetic equals that of `torch.optim.Adam` and `torch.optim.SparseAdam` bit for bit (a test compares them). Those classes
are not used because creating one imports torch's compiler, which costs every training process more CPU time than training a
small model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinktwice.models.embedding import FieldEmbedding
from thinktwice.models.sequences import ListPooling

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class _State:
    """Moving means of a parameter's gradient and of its square, and the number of updates it has had."""

    mean: Tensor
    square: Tensor
    steps: Tensor  # float32 scalar, as the kernel requires

    @staticmethod
    def of(parameter: Tensor) -> _State:
        return _State(
            torch.zeros_like(parameter),
            torch.zeros_like(parameter),
            torch.zeros((), dtype=torch.float32, device=parameter.device),
        )


class TableAdam:
    """One step for the whole model.

    A table of fewer than ``sparse_rows`` rows gets the L2 term on all rows at every step. A larger one is updated, and decays,
    only in the rows of the batch: the cost of a step then depends on the batch, not the vocabulary.

    Args:
        model: everything that is trained, the embedding included. Parameters other than the table and the vectors of lists have no L2.
        embedding: its ``sparse_gradients`` is set.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding: FieldEmbedding,
        *,
        rate: float,
        table_l2: float,
        sparse_rows: int,
    ) -> None:
        self.table = embedding.table
        self.rate = rate
        self.l2 = table_l2
        self.sparse = embedding.fields.num_rows >= sparse_rows
        embedding.sparse_gradients = self.sparse
        lists = [encoder.values for encoder in embedding.sequences if isinstance(encoder, ListPooling)]
        self._lists = {p: _State.of(p) for p in lists}
        self._dense = {
            p: _State.of(p) for p in model.parameters() if p is not self.table and p not in self._lists and p.numel()
        }
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._table = _State.of(self.table)

    def step(self, loss: Tensor) -> None:
        """Back-propagate and update."""
        for parameter in (self.table, *self._lists, *self._dense):
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            _update(self._dense, self.rate, 0.0)
            _update(self._lists, self.rate, self.l2)
            if self.sparse:
                self._update_rows()
            else:
                _update({self.table: self._table}, self.rate, self.l2)

    def set_rate(self, rate: float) -> None:
        """Learning rate of the next steps."""
        self.rate = rate

    def state(self) -> dict[str, Tensor]:
        """The moving means and the numbers of updates (not copies), by parameter."""
        states = {**self._dense, **self._lists, self.table: self._table}
        return {
            f"{part}.{self._names[parameter]}": value
            for parameter, state in states.items()
            for part, value in (("mean", state.mean), ("square", state.square), ("steps", state.steps))
        }

    def _update_rows(self) -> None:
        if self.table.grad is None:
            return
        gradient = self.table.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        if self.l2:
            values = values + self.l2 * self.table[rows]
        state = self._table
        state.steps.add_(1)
        done = float(state.steps)
        mean, square = state.mean[rows], state.square[rows]
        mean += (values - mean).mul_(1 - BETAS[0])
        square += values.pow(2).sub_(square).mul_(1 - BETAS[1])
        state.mean.index_copy_(0, rows, mean)
        state.square.index_copy_(0, rows, square)
        size = self.rate * math.sqrt(1 - BETAS[1] ** done) / (1 - BETAS[0] ** done)
        self.table.index_copy_(0, rows, self.table[rows] + mean.div_(square.sqrt_().add_(EPSILON)).mul_(-size))


def _update(states: dict[nn.Parameter, _State], rate: float, weight_decay: float) -> None:
    """One fused Adam update of the parameters that have a gradient."""
    due = [(parameter, parameter.grad, state) for parameter, state in states.items() if parameter.grad is not None]
    if not due:
        return
    for _, _, state in due:
        state.steps.add_(1)
    torch.ops.aten._fused_adam_(
        [parameter for parameter, _, _ in due],
        [gradient for _, gradient, _ in due],
        [state.mean for _, _, state in due],
        [state.square for _, _, state in due],
        [],
        [state.steps for _, _, state in due],
        lr=rate,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=weight_decay,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
    )
