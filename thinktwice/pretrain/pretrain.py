"""Generative pre-training by absorbing discrete diffusion over the fields and the label of an impression."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from thinktwice.data.encoded import Batch, EncodedRows, count_values
from thinktwice.data.training_set import load_training_set
from thinktwice.files import atomic_dir
from thinktwice.models import FieldSpace, ModelInfo, build_backbone, write_model
from thinktwice.models.config import BackboneConfig
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.corrupt import corrupt
from thinktwice.pretrain.denoiser import HIDDEN_LABEL, Denoiser
from thinktwice.pretrain.record import TRAINING_FILE, LossRecord, PretrainRecord
from thinktwice.progress import note
from thinktwice.threads import reproducible
from thinktwice.train.checkpoint import Checkpoints, training_checkpoints
from thinktwice.train.checks import check_rows
from thinktwice.train.device import on_device
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar, LoopPlan, Resume, Steps, run_loop

STAGE = "pretrain"
CURVE_POINTS = 10  # approximate number in a run


@dataclass(frozen=True)
class Losses:
    """Loss of one batch: the sum to minimise, per target the mean loss in nats (NaN: nothing masked), the label's loss."""

    total: Tensor
    fields: dict[str, float]
    label: float


def denoising_loss(model: Denoiser, batch: Batch, label: Tensor, generator: torch.Generator) -> Losses:
    """Corrupt a batch and score the restoration of every masked element, on the model's device."""
    fields, config, device = model.backbone.fields, model.config, model.label_shift.device
    corrupted = corrupt(label, fields.num_fields, config.label_hidden, generator)
    keep, token = (part.to(device) for part in corrupted)
    batch, label = on_device(batch, device), label.to(device)
    hidden = model.hidden(model.backbone.embed(batch), keep, token)
    unseen = token == HIDDEN_LABEL
    label_loss = torch.zeros((), device=device)
    if unseen.any():
        label_loss = F.binary_cross_entropy_with_logits(model.backbone.head(hidden)[unseen], label[unseen])
    predicted = model.predictions(hidden)
    terms: dict[str, Tensor] = {}
    for position, name in enumerate(fields.names):
        masked = keep[:, position] == 0
        if name in fields.vectors:
            term = _vector_loss(model, fields.vectors.index(name), hidden, batch.vectors[name], masked)
        else:
            column, target = _targets(fields, position, name, batch, generator)
            known = masked & (target > 0)
            if not known.any():
                continue
            values = target[known]
            candidates = None if model.small[column] else _candidates(values, config.negatives, generator)
            term = model.field_loss(column, predicted[known, position], values, candidates, draws=len(values)).mean()
        if term is not None:
            terms[name] = term
    total = config.label_weight * label_loss
    if terms:
        total = total + torch.stack(list(terms.values())).sum() / fields.num_fields
    return Losses(total, {k: float(v.detach()) for k, v in terms.items()}, float(label_loss.detach()))


def _targets(
    fields: FieldSpace, position: int, name: str, batch: Batch, generator: torch.Generator
) -> tuple[int, Tensor]:
    """Column whose vocabulary contains the field's values, and the local value [B] to restore (0: none)."""
    if position < len(fields.num_values):
        return position, batch.ids[:, position]
    sequence = batch.sequences[name]
    length = (sequence != 0).sum(dim=1)
    share = torch.rand(len(sequence), generator=generator).to(length.device)
    pick = (share * length).long()  # one behaviour of each row
    return fields.columns.index(fields.sequence_of[fields.sequences.index(name)]), sequence.gather(1, pick[:, None])[
        :, 0
    ]


def _candidates(values: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """At most ``limit`` distinct values of the batch."""
    unique = values.unique()
    return unique if len(unique) <= limit else unique[torch.randperm(len(unique), generator=generator)[:limit]]


def _vector_loss(model: Denoiser, index: int, hidden: Tensor, vector: Tensor, masked: Tensor) -> Tensor | None:
    known = masked & ~vector.isnan().any(dim=1)
    if not known.any():
        return None
    return (1.0 - F.cosine_similarity(model.vector_heads[index](hidden[known]), vector[known], dim=-1)).mean()


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained backbone with its curve: per point the epoch, the label's loss and every field's loss.

    The loss of a ``sampled`` field only separates values of the same batch: it is lower than a loss over the whole vocabulary
    and cannot be compared with the entropy of the values.
    """

    denoiser: Denoiser
    curve: list[dict[str, Any]]
    unigram: dict[str, float]  # entropy in train of the values of each column that is not sampled, nats
    sampled: list[str]


def unigram_entropy(rows: EncodedRows, fields: FieldSpace) -> dict[str, float]:
    """Entropy of the known values of each column, in nats: the lowest loss of a model without context."""
    out = {}
    for c, (name, size) in enumerate(zip(fields.columns, fields.num_values, strict=True)):
        counts = np.bincount(rows.ids[:, c], minlength=size)[1:].astype(np.float64)
        share = counts[counts > 0] / max(counts.sum(), 1.0)
        out[name] = float(-(share * np.log(share)).sum())
    return out


def log_shares(rows: EncodedRows, fields: FieldSpace) -> Tensor:
    """Log of each value's share of the rows of its field [sum(num_values)]; unseen values count as half a row."""
    counts = count_values(rows.ids, fields.num_values).astype(np.float64)
    return torch.from_numpy(np.log(np.maximum(counts, 0.5) / max(len(rows), 1)).astype(np.float32))


@reproducible()
def fit(
    train: EncodedRows,
    fields: FieldSpace,
    backbone: BackboneConfig,
    config: PretrainConfig,
    *,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
) -> Pretrained:
    """Pre-train in memory; the model is returned on the CPU.

    The same arguments give identical weights on the same CPU and number of threads, also if the process is killed and
    continues from ``checkpoints``.

    Raises:
        DataError: there are no rows, or an id is outside its vocabulary.
        TrainingError: the loss of a batch is not finite, or a checkpoint is of another training.
    """
    check_rows(train, fields, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Denoiser(build_backbone(backbone, fields, seed=seed), config, log_shares(train, fields))
        rows = BlockLoader(train)
        steps = Steps.of(len(rows), config.batch_size, config.epochs)
        plan = LoopPlan(
            steps,
            eval_every=max(1, steps.total // CURVE_POINTS),
            rate=config.rate,
            table_l2=config.table_l2,
            sparse_rows=config.sparse_rows,
        )
        curve: list[dict[str, Any]] = []
        window: list[Losses] = []

        def loss(index: Tensor, generator: torch.Generator) -> Tensor:
            losses = denoising_loss(model, rows.batch(index), rows.label[index], generator)
            window.append(losses)
            return losses.total

        def on_eval(epoch: float, loss: float) -> None:
            curve.append({"epoch": epoch} | _mean(window))
            window.clear()

        def restore(points: dict[str, Any], tensors: dict[str, Tensor]) -> None:
            curve.extend(points["curve"])
            window.extend(Losses(torch.zeros(()), each["fields"], each["label"]) for each in points["window"])

        def gathered() -> tuple[dict[str, Any], dict[str, Tensor]]:
            since = [{"fields": losses.fields, "label": losses.label} for losses in window]
            return {"curve": curve, "window": since}, {}

        run_loop(
            model,
            model.backbone.embedding,
            rows,
            loss,
            plan,
            seed=seed,
            on_eval=on_eval,
            bar=Bar(STAGE, "steps"),
            resume=None if checkpoints is None else Resume(checkpoints.run(STAGE), gathered, restore),
        )
    sampled = _sampled(model)
    unigram = {name: entropy for name, entropy in unigram_entropy(train, fields).items() if name not in sampled}
    return Pretrained(model, curve, unigram, sampled)


def _sampled(model: Denoiser) -> list[str]:
    """Fields that are restored among candidates of the batch: large vocabularies, and sequences of such values."""
    fields = model.backbone.fields
    large = [name for name, small in zip(fields.columns, model.small, strict=True) if not small]
    return large + [name for name, of in zip(fields.sequences, fields.sequence_of, strict=True) if of in large]


def _mean(window: list[Losses]) -> dict[str, Any]:
    names = sorted({name for losses in window for name in losses.fields})
    fields = {
        name: float(np.mean([losses.fields[name] for losses in window if name in losses.fields])) for name in names
    }
    return {"label": float(np.mean([losses.label for losses in window])), "fields": fields}


def pretrain(
    training_set_dir: Path | str,
    out_dir: Path | str,
    backbone: BackboneConfig,
    config: PretrainConfig,
    *,
    seed: int = 0,
    checkpoints: str = "",
) -> PretrainRecord:
    """Pre-train on the train part of a training set and write a model folder; returns its ``training.json``.

    With ``checkpoints`` (a folder, or ``s3://BUCKET/FOLDER``) a killed training continues where it was; they are removed at the
    end.
    """
    data = load_training_set(training_set_dir)
    fields = FieldSpace.of(data.schema, data.encoder)
    train = data.part("train")
    saved = None
    if checkpoints:
        saved = training_checkpoints(checkpoints, data, fields, {"backbone": backbone, "settings": config}, seed=seed)
    done = fit(train, fields, backbone, config, seed=seed, checkpoints=saved)
    record = PretrainRecord(
        format=PretrainRecord.FORMAT,
        seed=seed,
        torch=torch.__version__,
        curve=tuple(LossRecord.model_validate(point) for point in done.curve),
        unigram_entropy=done.unigram,
        sampled_losses=tuple(done.sampled),
        config=config,
        rows={"train": len(train)},
    )
    provenance = {"schema": data.schema.name, "train_window": list(data.train_window), "seed": seed}
    with atomic_dir(out_dir) as folder:
        write_model(folder, done.denoiser.backbone, ModelInfo(stage="pretrained", provenance=provenance))
        record.write(folder / TRAINING_FILE)
    if saved is not None:
        saved.remove()
    note(STAGE, f"label loss {done.curve[-1]['label']:.4f} with half of the sample hidden")
    return record
