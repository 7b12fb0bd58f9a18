"""One training run with a rate schedule of fixed length, either a tuning trial or the final run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.stats.metrics import logloss
from thinktwice.threads import reproducible
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.device import on_device
from thinktwice.train.joint import Joint, Trainee
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar, LoopPlan, Steps, run_loop
from thinktwice.train.measure import known_auc, logits_of


@dataclass(frozen=True)
class EvalPoint:
    """One evaluation on validation during training."""

    epoch: float
    train_logloss: float
    valid_logloss: float
    valid_auc: float | None  # None: only one class


@dataclass(frozen=True)
class Trained:
    """The evaluations of a run; the model has the weights of ``best``."""

    curve: list[EvalPoint]
    best: EvalPoint


def rate_factor(done: float, warmup: float) -> float:
    """Share of the peak rate after a share ``done`` (0..1) of the steps: linear up during ``warmup``, then linear down to 0."""
    rise = min(1.0, done / warmup) if warmup else 1.0
    return rise * (1.0 - done)


@reproducible()
def train(
    model: Trainee,
    augmenter: Augmenter,
    rows: BlockLoader,
    valid: BlockLoader,
    config: FinetuneConfig,
    *,
    table_l2: float,
    epochs: float,
    seed: int,
    bar: Bar | None = None,
) -> Trained:
    """Train ``model`` in place and leave it with its best weights, in evaluation mode and on the CPU.

    The same arguments give identical weights on the same CPU and number of threads.

    Raises:
        TrainingError: the loss of a batch is not finite.
    """
    steps = Steps.of(len(rows), config.batch_size, epochs)
    plan = LoopPlan(
        steps,
        eval_every=max(1, math.ceil(steps.per_epoch / config.checks_per_epoch)),
        rate=config.rate,
        table_l2=table_l2,
        sparse_rows=config.sparse_rows,
        rate_factor=lambda done: rate_factor(done, config.warmup),
    )
    curve: list[EvalPoint] = []
    best: tuple[EvalPoint, dict[str, Tensor]] | None = None

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        device = model.embedding.table.device
        batch = augmenter(rows.batch(index), index, generator)
        return _loss(model, on_device(batch, device), rows.label[index].to(device))

    def on_eval(epoch: float, train_logloss: float) -> None:
        nonlocal best
        point = _evaluate(model, valid, epoch, train_logloss)
        curve.append(point)
        if best is None or point.valid_logloss < best[0].valid_logloss:
            best = point, {name: value.detach().clone() for name, value in _weights(model).items()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator
        run_loop(model, model.embedding, rows, loss, plan, seed=seed, on_eval=on_eval, bar=bar)
    assert best is not None
    with torch.no_grad():
        for name, value in _weights(model).items():
            value.copy_(best[1][name])
    return Trained(curve, best[0])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; shared ones only once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _loss(model: Trainee, batch: Batch, target: Tensor) -> Tensor:
    """Mean logloss under targets [B] in 0..1; for a joint model, the mean over its members."""
    if isinstance(model, Joint):
        logit = model.each(batch)
        return F.binary_cross_entropy_with_logits(logit, target[:, None].expand_as(logit))
    return F.binary_cross_entropy_with_logits(model(batch), target)


def _evaluate(model: Trainee, valid: BlockLoader, epoch: float, train_logloss: float) -> EvalPoint:
    logit, label = logits_of(model, valid), valid.label.numpy()
    return EvalPoint(epoch, train_logloss, logloss(label, logit), known_auc(label, logit))
