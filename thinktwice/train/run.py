"""One training run: a tuning trial, or the final run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.stats.metrics import logloss
from thinktwice.threads import reproducible
from thinktwice.train.augment import Augmenter
from thinktwice.train.averaging import UPDATES_PER_EPOCH, RunningAverage
from thinktwice.train.checkpoint import RunCheckpoints
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.device import on_device, training_device
from thinktwice.train.joint import Joint, Trainee
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar, LoopPlan, Resume, Steps, run_loop, weights_of
from thinktwice.train.measure import known_auc, logits_of
from thinktwice.train.unread import UnreadRows

BEST, AVERAGE = "best:", "average:"  # groups of tensors in a checkpoint


@dataclass(frozen=True)
class EvalPoint:
    """One evaluation on validation during training, of the averaged weights if the schedule has some."""

    epoch: float
    train_logloss: float
    valid_logloss: float
    valid_auc: float | None  # None: only one class


@dataclass(frozen=True)
class Trained:
    """The evaluations of a run; the model has the weights of ``best``, which is the last one where the end was asked for."""

    curve: list[EvalPoint]
    best: EvalPoint


def rate_factor(done: float, warmup: float) -> float:
    """Share of the peak rate after a share ``done`` (0..1) of the steps: linear up during ``warmup``, then linear down to 0."""
    return risen(done, warmup) * (1.0 - done)


def risen(done: float, warmup: float) -> float:
    """Share of the peak rate: linear up during ``warmup``, then 1."""
    return min(1.0, done / warmup) if warmup else 1.0


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
    checkpoints: RunCheckpoints | None = None,
    annealed: bool = False,
    ends: Callable[[float, float], bool] | None = None,
    weights: Tensor | None = None,
    watch: Callable[[EvalPoint], None] | None = None,
    unread: UnreadRows | None = None,
) -> Trained:
    """Train ``model`` in place and leave it with its best weights, in evaluation mode and on the CPU.

    The same arguments give identical weights on the same CPU and number of threads, also if the process is killed and
    continues from ``checkpoints``.

    Args:
        checkpoints: of this run, to continue from and to write.
        annealed: keep the weights of the end, where the rate is 0 or the average is longest, instead of those of the best evaluation.
        ends: asked after every evaluation, with its epoch and that of the best one, whether the run ends there.
        weights: of the training rows [R], with a mean of 1; None: all count the same.
        unread: rows of embeddings that keep their values; None: L2 moves them too.
        watch: told of every evaluation; an error that it raises ends the run.

    Raises:
        TrainingError: the loss of a batch is not finite, or a checkpoint is of another training.
    """
    steps = Steps.of(len(rows), config.batch_size, epochs)
    averaged = config.schedule == "averaged"
    epochs_of_all = steps.total / steps.per_epoch  # so that a longer run begins with the steps of a shorter one
    plan = LoopPlan(
        steps,
        eval_every=max(1, math.ceil(steps.per_epoch / config.checks_per_epoch)),
        rate=config.rate,
        table_l2=table_l2,
        sparse_rows=config.sparse_rows,
        rate_factor=lambda done: (
            risen(done * epochs_of_all, config.warmup) if averaged else rate_factor(done, config.warmup)
        ),
    )
    curve: list[EvalPoint] = []
    best: tuple[EvalPoint, dict[str, Tensor]] | None = None
    average = RunningAverage(model.to(training_device())) if averaged else None

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        device = model.embedding.table.device
        batch = augmenter(rows.batch(index), index, generator)
        target = smoothed(rows.label[index], config.label_smoothing).to(device)
        weight = None if weights is None else weights[index].to(device)
        return _loss(model, on_device(batch, device), target, weight)

    def on_step(step: int) -> None:
        if average is not None and step % max(1, steps.per_epoch // UPDATES_PER_EPOCH) == 0:
            average.update(model)

    def on_eval(epoch: float, train_logloss: float) -> bool:
        if unread is not None:
            unread.restore(model)  # no step reads them, so it is enough to do it before each look
        if average is None:
            return look(epoch, train_logloss)
        with average.in_place(model):
            if unread is not None:
                unread.restore(model)
            return look(epoch, train_logloss)

    def look(epoch: float, train_logloss: float) -> bool:
        """Evaluate the weights that the model has now; True if the run ends here."""
        nonlocal best
        point = _evaluate(model, valid, epoch, train_logloss)
        curve.append(point)
        if watch is not None:
            watch(point)
        if annealed or best is None or point.valid_logloss < best[0].valid_logloss:
            # The weights of the end are those of the model itself, unless it is left with others than it averages.
            kept = {} if annealed and not averaged else {n: v.detach().clone() for n, v in weights_of(model).items()}
            best = point, kept
        return ends is not None and ends(epoch, best[0].epoch)

    def gathered() -> tuple[dict[str, Any], dict[str, Tensor]]:
        points = {"curve": [asdict(point) for point in curve], "best": None if best is None else asdict(best[0])}
        groups = {BEST: {} if best is None else best[1], AVERAGE: {} if average is None else average.state()}
        return points, {group + name: value for group, values in groups.items() for name, value in values.items()}

    def restore(points: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        nonlocal best
        curve.extend(EvalPoint(**point) for point in points["curve"])
        if points["best"] is not None:
            best = EvalPoint(**points["best"]), _group(tensors, BEST)
        if average is not None:
            average.restore(_group(tensors, AVERAGE))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator
        resume = None if checkpoints is None else Resume(checkpoints, gathered, restore)
        run_loop(
            model, model.embedding, rows, loss, plan,
            seed=seed, on_eval=on_eval, on_step=on_step, bar=bar, resume=resume,
        )  # fmt: skip
    assert best is not None
    if best[1]:
        with torch.no_grad():
            for name, value in weights_of(model).items():
                value.copy_(best[1][name])
    return Trained(curve, best[0])


def _group(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    return {name.removeprefix(group): value for name, value in tensors.items() if name.startswith(group)}


def smoothed(label: Tensor, smoothing: float) -> Tensor:
    """Labels moved towards 0.5: 0 becomes ``smoothing / 2``, and 1 becomes ``1 - smoothing / 2``."""
    return label if smoothing == 0 else label * (1.0 - smoothing) + 0.5 * smoothing


def _loss(model: Trainee, batch: Batch, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean logloss under targets [B] in 0..1, each row with its ``weight`` [B]; for a joint model, the mean over its members."""
    if isinstance(model, Joint):
        logit = model.each(batch)
        rows = None if weight is None else weight[:, None]
        return F.binary_cross_entropy_with_logits(logit, target[:, None].expand_as(logit), rows)
    return F.binary_cross_entropy_with_logits(model(batch), target, weight)


def _evaluate(model: Trainee, valid: BlockLoader, epoch: float, train_logloss: float) -> EvalPoint:
    logit, label = logits_of(model, valid), valid.label.numpy()
    return EvalPoint(epoch, train_logloss, logloss(label, logit), known_auc(label, logit))
