"""The training loop: what pre-training and fine-tuning share, from the order of the rows to the finished weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinktwice.errors import TrainingError
from thinktwice.models.embedding import FieldEmbedding
from thinktwice.progress import track
from thinktwice.train.device import training_device
from thinktwice.train.loader import BlockLoader
from thinktwice.train.optimizer import TableAdam

Loss = Callable[[Tensor, torch.Generator], Tensor]  # of the rows at an index [B]; all draws come from the generator
OnEval = Callable[[float, float], None]  # epochs done, mean training loss since the last evaluation


@dataclass(frozen=True)
class Steps:
    """Length of a run: ``total`` steps of ``size`` rows, ``per_epoch`` of them to an epoch."""

    size: int
    per_epoch: int
    total: int

    @staticmethod
    def of(rows: int, batch_size: int, epochs: float) -> Steps:
        """At least one step; the rows left over at the end of an epoch are not a batch."""
        size = min(batch_size, rows)
        per_epoch = max(1, rows // size)
        return Steps(size, per_epoch, max(1, math.ceil(epochs * per_epoch)))


def constant_rate(done: float) -> float:
    """The highest rate in every step."""
    return 1.0


@dataclass(frozen=True)
class LoopPlan:
    """Settings of one run.

    Attributes:
        steps: its length.
        eval_every: steps between two evaluations; the last step is followed by one in any case.
        rate: highest learning rate.
        rate_factor: share of it by the share of the steps done, 0 to 1.
        table_l2: L2 on the embedding table.
        sparse_rows: tables of at least so many rows update only the rows of a batch.
    """

    steps: Steps
    eval_every: int
    rate: float
    table_l2: float
    sparse_rows: int
    rate_factor: Callable[[float], float] = constant_rate


@dataclass(frozen=True)
class Bar:
    """Where the steps of a run are reported: the stage, and what the run is called in it."""

    stage: str
    label: str


def run_loop(
    model: nn.Module,
    embedding: FieldEmbedding,
    rows: BlockLoader,
    loss: Loss,
    plan: LoopPlan,
    *,
    seed: int,
    on_eval: OnEval,
    bar: Bar | None = None,
) -> None:
    """Train ``model`` in place; it comes back on the CPU, in evaluation mode.

    Args:
        model: all that is trained, ``embedding`` included. It trains where :func:`training_device` says.
        embedding: the part whose table has L2, and sparse updates where it is large.
        rows: drawn in batches, in an order that the seed decides.
        loss: what a step lowers. It finds the model on the device of ``embedding.table``.
        plan: settings.
        seed: of the generator; dropout draws from the global one, which the caller seeds.
        on_eval: called after every ``plan.eval_every`` steps and after the last.

    Raises:
        TrainingError: the loss of a batch is not finite. The weights are those before that step.
    """
    steps = plan.steps
    generator = torch.Generator().manual_seed(seed)
    model.to(training_device())
    optimizer = TableAdam(
        model,
        embedding,
        rate=plan.rate,
        table_l2=plan.table_l2,
        sparse_rows=plan.sparse_rows,
    )
    numbers = range(1, steps.total + 1)
    counted = numbers if bar is None else track(numbers, stage=bar.stage, total=steps.total, label=bar.label)
    sum_of_losses, since = torch.zeros(()), 0
    model.train()
    try:
        for step, index in zip(counted, rows.shuffled(steps.size, generator), strict=False):
            optimizer.set_rate(plan.rate * plan.rate_factor((step - 0.5) / steps.total))
            value = loss(index, generator)
            if not math.isfinite(number := value.item()):
                raise TrainingError(_diverged(number, step, plan))
            optimizer.step(value)
            sum_of_losses, since = sum_of_losses + value.detach(), since + 1
            if step % plan.eval_every == 0 or step == steps.total:
                on_eval(step / steps.per_epoch, float(sum_of_losses) / since)
                sum_of_losses, since = torch.zeros(()), 0
    finally:
        embedding.sparse_gradients = False
        model.cpu().eval()


def _diverged(loss: float, step: int, plan: LoopPlan) -> str:
    return (
        f"the training loss is {loss} in step {step} of {plan.steps.total} at the rate {plan.rate:g}: lower the rate, "
        "or rescale vectors that hold very large numbers"
    )
