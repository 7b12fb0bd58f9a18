"""One training run under a rate schedule of fixed length; what tuning compares and what it ends with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.stats.metrics import logloss
from thinktwice.threads import reproducible
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.device import on_device, training_device
from thinktwice.train.joint import Joint, Trainee
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import known_auc, logits_of
from thinktwice.train.optimizer import TableAdam


@dataclass(frozen=True)
class Look:
    """One look at validation during training."""

    epoch: float
    train_logloss: float
    valid_logloss: float
    valid_auc: float | None  # None: one class only


@dataclass(frozen=True)
class Trained:
    """The looks of a run; the model holds the weights of ``best``."""

    curve: list[Look]
    best: Look


def rate_factor(done: float, warmup: float) -> float:
    """Share of the highest rate after ``done`` (0..1) of the steps: linear up during ``warmup``, then linear down to 0."""
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
    on_look: Callable[[Look], None] = lambda look: None,
) -> Trained:
    """Train ``model`` in place and leave it with its best weights, in evaluation mode and on the CPU.

    The same arguments give the same weights to the last bit on the same CPU and number of threads.
    """
    size = min(config.batch_size, len(rows))
    per_epoch = max(1, len(rows) // size)
    steps = max(1, math.ceil(epochs * per_epoch))
    between = max(1, math.ceil(per_epoch / config.checks_per_epoch))
    generator = torch.Generator().manual_seed(seed)
    device = training_device()
    model.to(device)
    optimizer = TableAdam(model, rate=config.rate, table_l2=table_l2, sparse_rows=config.sparse_rows)
    curve: list[Look] = []
    best: tuple[Look, dict[str, Tensor]] | None = None
    total, since = torch.zeros(()), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator
        model.train()
        for step, index in zip(range(1, steps + 1), rows.shuffled(size, generator), strict=False):
            optimizer.set_rate(config.rate * rate_factor((step - 0.5) / steps, config.warmup))
            batch = augmenter(rows.batch(index), index, generator)
            loss = _loss(model, on_device(batch, device), rows.label[index].to(device))
            optimizer.step(loss)
            total, since = total + loss.detach(), since + 1
            if step % between == 0 or step == steps:
                look = _look(model, valid, step / per_epoch, float(total) / since)
                total, since = torch.zeros(()), 0
                curve.append(look)
                if best is None or look.valid_logloss < best[0].valid_logloss:
                    best = look, {name: value.detach().clone() for name, value in model.state_dict().items()}
                on_look(look)
    assert best is not None
    model.load_state_dict(best[1])
    model.sparse_gradients = False
    model.cpu().eval()
    return Trained(curve, best[0])


def _loss(model: Trainee, batch: Batch, target: Tensor) -> Tensor:
    """Mean logloss under targets [B] in 0..1; of a joint, the mean over its members."""
    if isinstance(model, Joint):
        logit = model.each(batch)
        return F.binary_cross_entropy_with_logits(logit, target[:, None].expand_as(logit))
    return F.binary_cross_entropy_with_logits(model(batch), target)


def _look(model: Trainee, valid: BlockLoader, epoch: float, train_logloss: float) -> Look:
    logit, label = logits_of(model, valid), valid.label.numpy()
    return Look(epoch, train_logloss, logloss(label, logit), known_auc(label, logit))
