"""Generative pre-training by absorbing discrete diffusion over the fields and the label of an impression."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from thinktwice.data.encoded import EncodedRows, count_values
from thinktwice.data.training_set import load_training_set
from thinktwice.files import atomic_dir, sha256_file
from thinktwice.models import Backbone, FieldSpace, ModelInfo, build_backbone, write_model
from thinktwice.models.backbone import EMBEDDING
from thinktwice.models.config import BackboneConfig
from thinktwice.models.store import WEIGHTS_FILE
from thinktwice.pretrain.balance import Balance
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.corrupt import corrupt, corrupt_batch
from thinktwice.pretrain.denoiser import HIDDEN_LABEL, Denoiser
from thinktwice.pretrain.losses import Losses, Restoration, denoising_loss
from thinktwice.pretrain.record import TRAINING_FILE, DifficultyRecord, LossRecord, PretrainRecord
from thinktwice.progress import note
from thinktwice.threads import reproducible
from thinktwice.train.checkpoint import Checkpoints, training_checkpoints
from thinktwice.train.checks import check_rows
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar, LoopPlan, Resume, Steps, run_loop
from thinktwice.train.unread import unread_rows
from thinktwice.train.warm_start import continued_model

STAGE = "pretrain"
CURVE_POINTS = 10  # approximate number in a run
CLASS_ROWS = 4096  # rows whose restoration by class is measured
TOKENS = {"no click": 0, "click": 1, "hidden": HIDDEN_LABEL}

Kind = Literal["dgenctr", "hetegenctr"]


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
    difficulties: dict[
        str, dict[str, float]
    ]  # by field: start, end, weight, and its equilibrium; empty without balancing
    by_class: dict[str, dict[str, float]]  # by class and token: mean loss of the fields


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
    kind: Kind = "dgenctr",
    start_from: Backbone | None = None,
    labelled: np.ndarray | None = None,
) -> Pretrained:
    """Pre-train in memory, with the weights of the fields by ``config.balancing`` for the kind ``hetegenctr``; the model is
    returned on the CPU. ``start_from`` provides the initial weights of the backbone and is trained in place. ``labelled`` [R] bool says
    of which rows the label is known; None: of all.

    The same arguments give identical weights on the same CPU and number of threads, also if the process is killed and
    continues from ``checkpoints``.

    Raises:
        DataError: there are no rows, or an id is outside its vocabulary.
        TrainingError: the loss of a batch is not finite, or a checkpoint is of another training.
    """
    check_rows(train, fields, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        entropies = unigram_entropy(train, fields)
        balance = _balance(fields, config, entropies) if kind == "hetegenctr" else None
        start = build_backbone(backbone, fields, seed=seed) if start_from is None else start_from
        unread = None if start_from is None else unread_rows(start_from, train)
        model = Denoiser(start, config, log_shares(train, fields), balance)
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
        known = None if labelled is None else torch.from_numpy(labelled)

        def loss(index: Tensor, generator: torch.Generator) -> Tensor:
            guidance = 0.0 if balance is None else 1.0 - float(balance.steps) / steps.total  # none is left at the end
            of_batch = None if known is None else known[index]
            losses = denoising_loss(model, rows.batch(index), rows.label[index], generator, guidance, of_batch)
            window.append(replace(losses, total=losses.total.detach()))
            return losses.total

        def on_eval(epoch: float, loss: float) -> None:
            weights = {} if balance is None else {"weights": _named(fields, balance.weights())}
            curve.append({"epoch": epoch} | _mean(window) | weights)
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
    if unread is not None:
        unread.restore(model.backbone)
    model.guide()
    sampled = _sampled(model)
    unigram = {name: entropy for name, entropy in entropies.items() if name not in sampled}
    return Pretrained(
        model, curve, unigram, sampled, _difficulties(fields, balance), by_class(model, rows, seed, known)
    )


def _balance(fields: FieldSpace, config: PretrainConfig, entropies: dict[str, float]) -> Balance:
    """Known entropies of small vocabularies; vectors and counters have 1, the loss of a prediction by the mean."""
    entropy, source = [], []
    for position, (name, kind) in enumerate(zip(fields.names, fields.kinds, strict=True)):
        of = position
        if kind == "sequence" and name not in fields.own_lists:
            of = fields.columns.index(fields.sequence_of[fields.sequences.index(name)])
        source.append(of)
        if kind in ("vector", "counters"):
            entropy.append(1.0)
        elif position < len(fields.num_values) and fields.num_values[position] <= config.full_softmax:
            entropy.append(entropies[name])
        else:
            entropy.append(math.nan)
    return Balance(config.balancing, torch.tensor(entropy), torch.tensor(source))


def _named(fields: FieldSpace, values: Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in zip(fields.names, values, strict=True)}


def _difficulties(fields: FieldSpace, balance: Balance | None) -> dict[str, dict[str, float]]:
    if balance is None:
        return {}
    parts = {
        "start": balance.start(),
        "end": balance.difficulty(),
        "weight": balance.weights(),
        "equilibrium": balance.equilibrium(),
    }
    named = {part: _named(fields, values) for part, values in parts.items()}
    return {name: {part: values[name] for part, values in named.items()} for name in fields.names}


@torch.inference_mode()
def by_class(model: Denoiser, rows: BlockLoader, seed: int, known: Tensor | None = None) -> dict[str, dict[str, float]]:
    """Mean loss of the fields of rows of each class under the token of either class and a hidden one, with half of the fields
    masked: rows are restored best under their own class if positives and negatives have learned distinct distributions. Rows whose
    label is not ``known`` [R] are left out."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(rows), generator=generator)
    index = (index if known is None else index[known[index]])[:CLASS_ROWS]
    model.eval()
    found: dict[str, dict[str, float]] = {}
    for clicked in (0.0, 1.0):
        of_class = index[rows.label[index] == clicked]
        if not len(of_class):
            continue
        batch, rate = rows.batch(of_class), torch.full((len(of_class),), 0.5)
        keep, _ = corrupt(rows.label[of_class], model.backbone.num_fields, 0.0, generator, rate)
        corrupted = corrupt_batch(batch, model.backbone.fields, keep, rate, generator)
        x = model.backbone.embed(corrupted.batch)
        losses = {}
        for name, token in TOKENS.items():
            hidden, read = model.encoded(x, torch.full((len(of_class),), token), rate)
            draws = torch.Generator().manual_seed(seed)
            each = Restoration(model, batch, keep, torch.ones(len(of_class)), hidden, read, draws)
            terms = each.terms(corrupted.behaviours)
            losses[name] = float(torch.stack(list(terms.values())).mean()) if terms else 0.0
        found["click" if clicked else "no click"] = losses
    return found


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


def transferred_parts(model: Backbone, config: PretrainConfig, seed: int) -> Backbone:
    """The model that fine-tuning starts from: all parameters, or as in the ablations only the embeddings or only the trunk, and the
    rest newly initialised."""
    if config.ablation not in ("embeddings_only", "trunk_only"):
        return model
    fresh = build_backbone(model.config, model.fields, seed=seed)
    own = fresh.state_dict()
    kept = {
        name: value if name.startswith(EMBEDDING) == (config.ablation == "embeddings_only") else own[name]
        for name, value in model.state_dict().items()
    }
    fresh.load_state_dict(kept)
    return fresh.eval()


def pretrain(
    training_set_dir: Path | str,
    out_dir: Path | str,
    backbone: BackboneConfig,
    config: PretrainConfig,
    *,
    seed: int = 0,
    checkpoints: str = "",
    kind: Kind = "dgenctr",
) -> PretrainRecord:
    """Pre-train on the train part of a training set and write a model folder; returns its ``training.json``.

    A training set that continues an earlier model gives the initial weights. With ``checkpoints`` (a folder, or ``s3://BUCKET/FOLDER``) a killed training continues where it was; they are removed at the
    end.
    """
    data = load_training_set(training_set_dir)
    fields = FieldSpace.of(data.schema, data.encoder)
    train = data.part("train")
    saved = None
    if checkpoints:
        saved = training_checkpoints(
            checkpoints,
            data,
            fields,
            {"backbone": backbone, "settings": config},
            seed=seed,
            start=kind if data.start is None else f"{kind} {sha256_file(data.start / WEIGHTS_FILE)}",
        )
    start_from = continued_model(data, fields, backbone, seed=seed)
    done = fit(train, fields, backbone, config, seed=seed, checkpoints=saved, kind=kind, start_from=start_from)
    record = PretrainRecord(
        format=PretrainRecord.FORMAT,
        seed=seed,
        torch=torch.__version__,
        curve=tuple(LossRecord.model_validate(point) for point in done.curve),
        unigram_entropy=done.unigram,
        sampled_losses=tuple(done.sampled),
        config=config,
        rows={"train": len(train)},
        kind=kind,
        difficulties={name: DifficultyRecord.model_validate(value) for name, value in done.difficulties.items()},
        by_class=done.by_class,
    )
    provenance = {"schema": data.schema.name, "train_window": list(data.train_window), "seed": seed}
    with atomic_dir(out_dir) as folder:
        transferred = transferred_parts(done.denoiser.backbone, config, seed)
        write_model(folder, transferred, ModelInfo(stage="pretrained", provenance=provenance))
        record.write(folder / TRAINING_FILE)
    if saved is not None:
        saved.remove()
    note(STAGE, f"label loss {done.curve[-1]['label']:.4f} with half of the sample hidden")
    return record
