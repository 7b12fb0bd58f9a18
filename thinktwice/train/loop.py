"""The training loop that pre-training and fine-tuning share, from the order of the rows to the final weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thinktwice.errors import TrainingError
from thinktwice.models.embedding import FieldEmbedding
from thinktwice.progress import track
from thinktwice.train.checkpoint import Checkpoint, RunCheckpoints, restore_tensors
from thinktwice.train.device import training_device
from thinktwice.train.loader import BlockLoader, Shuffled
from thinktwice.train.optimizer import TableAdam

Loss = Callable[[Tensor, torch.Generator], Tensor]  # of the rows at an index [B]; all draws come from the generator
OnEval = Callable[[float, float], bool | None]  # epochs done, mean loss since the last evaluation; True ends the run


@dataclass(frozen=True)
class Steps:
    """Length of a run: ``total`` steps of ``size`` rows, ``per_epoch`` steps per epoch."""

    size: int
    per_epoch: int
    total: int

    @staticmethod
    def of(rows: int, batch_size: int, epochs: float) -> Steps:
        """At least one step; the incomplete last batch of an epoch is dropped."""
        size = min(batch_size, rows)
        per_epoch = max(1, rows // size)
        # Without the margin, a length that was measured in steps could get one more: 29 / 7 * 7 > 29.
        return Steps(size, per_epoch, max(1, math.ceil(epochs * per_epoch - 1e-6)))


def constant_rate(done: float) -> float:
    """The peak rate in every step."""
    return 1.0


@dataclass(frozen=True)
class LoopPlan:
    """Settings of one run.

    Attributes:
        steps: its length.
        eval_every: steps between two evaluations; the last step is always evaluated.
        rate: peak learning rate.
        rate_factor: share of the peak rate as a function of the share of steps done, 0 to 1.
        table_l2: L2 on the embedding table.
        sparse_rows: tables with at least this many rows update only the rows of a batch.
    """

    steps: Steps
    eval_every: int
    rate: float
    table_l2: float
    sparse_rows: int
    rate_factor: Callable[[float], float] = constant_rate


@dataclass(frozen=True)
class Bar:
    """Progress label of a run: the stage, and the name of the run in it."""

    stage: str
    label: str


@dataclass(frozen=True)
class Resume:
    """How a run is saved and continued.

    Attributes:
        checkpoints: of the run.
        state: what the caller of the loop has gathered: a JSON value, and tensors by name.
        restore: puts it back.
    """

    checkpoints: RunCheckpoints
    state: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]]
    restore: Callable[[dict[str, Any], dict[str, Tensor]], None]


def run_loop(
    model: nn.Module,
    embedding: FieldEmbedding,
    rows: BlockLoader,
    loss: Loss,
    plan: LoopPlan,
    *,
    seed: int,
    on_eval: OnEval,
    on_step: Callable[[int], None] | None = None,
    bar: Bar | None = None,
    resume: Resume | None = None,
) -> None:
    """Train ``model`` in place; it is left on the CPU, in evaluation mode.

    Args:
        model: everything that is trained, ``embedding`` included. It trains on :func:`training_device`.
        embedding: the part whose table has L2, and sparse updates if it is large.
        rows: drawn in batches, in an order set by the seed.
        loss: minimised by each step. The model is on the device of ``embedding.table``.
        plan: settings.
        seed: of the generator; dropout draws from the global one, which the caller seeds.
        resume: continue from the last checkpoint of this run, and write further ones; None: neither.
        on_eval: called after every ``plan.eval_every`` steps and after the last.
        on_step: called with the number of steps done, after every step and before an evaluation.

    Raises:
        TrainingError: the loss of a batch is not finite. The weights are those before that step. Or the checkpoint is of
            another training.
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
    order = rows.shuffled(steps.size, generator)
    device = embedding.table.device
    done, sum_of_losses, since, ended = 0, torch.zeros((), device=device), 0, False
    if resume is not None and (saved := resume.checkpoints.last()) is not None:
        done, since, ended = saved.step, int(saved.extra["since"]), bool(saved.extra["ended"])
        sum_of_losses = saved.tensors["sum_of_losses"].to(device)
        _restore(saved, model, optimizer, order, resume)
    numbers = range(done + 1, done + 1 if ended else steps.total + 1)
    counted = numbers if bar is None else track(numbers, stage=bar.stage, total=steps.total, label=bar.label)
    model.train()
    try:
        for step, index in zip(counted, order, strict=False):
            optimizer.set_rate(plan.rate * plan.rate_factor((step - 0.5) / steps.total))
            value = loss(index, generator)
            if not math.isfinite(number := value.item()):
                raise TrainingError(_diverged(number, step, plan))
            optimizer.step(value)
            sum_of_losses, since = sum_of_losses + value.detach(), since + 1
            if on_step is not None:
                on_step(step)
            if step % plan.eval_every == 0 or step == steps.total:
                ended = bool(on_eval(step / steps.per_epoch, float(sum_of_losses) / since)) or step == steps.total
                sum_of_losses, since = torch.zeros((), device=device), 0
            if resume is not None and (ended or resume.checkpoints.due()):
                described = {"since": since, "ended": ended}
                resume.checkpoints.write(_saved(step, described, sum_of_losses, model, optimizer, order, resume))
            if ended and step < steps.total:
                break
    finally:
        embedding.sparse_gradients = False
        model.cpu().eval()


def _saved(
    step: int,
    described: dict[str, Any],
    sum_of_losses: Tensor,
    model: nn.Module,
    optimizer: TableAdam,
    order: Shuffled,
    resume: Resume,
) -> Checkpoint:
    """Everything that decides the steps that follow."""
    extra, gathered = resume.state()
    groups = {
        "model": weights_of(model),
        "optimizer": optimizer.state(),
        "order": order.state(),
        "random": _random_states(),
        "caller": gathered,
    }
    tensors = {f"{group}:{name}": value for group, values in groups.items() for name, value in values.items()}
    return Checkpoint(step, tensors | {"sum_of_losses": sum_of_losses}, {**described, "caller": extra})


def _restore(saved: Checkpoint, model: nn.Module, optimizer: TableAdam, order: Shuffled, resume: Resume) -> None:
    restore_tensors(weights_of(model), saved.tensors, "model:")
    restore_tensors(optimizer.state(), saved.tensors, "optimizer:")
    groups: dict[str, dict[str, Tensor]] = {"order": {}, "random": {}, "caller": {}}
    for name, value in saved.tensors.items():
        group, _, own = name.partition(":")
        groups.setdefault(group, {})[own] = value
    order.restore(groups["order"])
    torch.set_rng_state(groups["random"]["cpu"])
    if "cuda" in groups["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(groups["random"]["cuda"])
    resume.restore(saved.extra["caller"], groups["caller"])


def _random_states() -> dict[str, Tensor]:
    """Of the global generators, which dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; shared ones only once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _diverged(loss: float, step: int, plan: LoopPlan) -> str:
    return (
        f"the training loss is {loss} in step {step} of {plan.steps.total} at the rate {plan.rate:g}: lower the rate, "
        "or rescale vectors that contain very large numbers"
    )
