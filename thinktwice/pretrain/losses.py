"""The loss of pre-training: what was masked in a batch is restored, each kind of field by its own target.

Values of columns have a softmax over the vocabulary, or over candidates of the batch where it is large; numbers are such values
through their buckets. Every behaviour of a sequence is masked, and predicted, by itself. Vectors and counters have a regression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from thinktwice.data.encoded import Batch
from thinktwice.pretrain.corrupt import corrupt, corrupt_batch, mask_rates
from thinktwice.pretrain.denoiser import HIDDEN_LABEL, Denoiser
from thinktwice.train.device import on_device


@dataclass(frozen=True)
class Losses:
    """Loss of one batch: the sum to minimise, per target the mean loss in nats (NaN: nothing masked), the label's loss."""

    total: Tensor
    fields: dict[str, float]
    label: float


def denoising_loss(
    model: Denoiser,
    batch: Batch,
    label: Tensor,
    generator: torch.Generator,
    guidance: float = 0.0,
    labelled: Tensor | None = None,
) -> Losses:
    """Corrupt a batch and score the restoration of every masked element, on the model's device.

    ``guidance`` is how much the weights of fields scale their inputs, where there is no attention to guide. ``labelled`` [B] bool says
    whose label is known: the others are hidden and not restored; None: all are known.
    """
    fields, config, device = model.backbone.fields, model.config, model.label_shift.device
    model.guide()
    rate, weight = mask_rates(len(label), config, generator)
    keep, token = corrupt(label, fields.num_fields, config.label_hidden, generator, rate)
    if config.ablation == "no_label":
        token = torch.full_like(token, HIDDEN_LABEL)
    if labelled is not None:
        token = token.masked_fill(~labelled, HIDDEN_LABEL)
    corrupted = corrupt_batch(batch, fields, keep, rate, generator)
    masked = on_device(corrupted.batch, device)
    keep, token, weight, label, rate = (part.to(device) for part in (keep, token, weight, label, rate))
    hidden, read = model.encoded(model.backbone.embed(masked), token, rate, guidance)
    label_loss = torch.zeros((), device=device)
    unseen = token == HIDDEN_LABEL
    if labelled is not None:
        unseen &= labelled.to(device)
    if config.ablation != "no_label" and unseen.any():
        label_loss = F.binary_cross_entropy_with_logits(model.backbone.head(hidden)[unseen], label[unseen])
    each = Restoration(model, on_device(batch, device), keep, weight, hidden, read, generator)
    terms = each.terms({name: value.to(device) for name, value in corrupted.behaviours.items()})
    total = config.label_weight * label_loss
    if terms:
        total = total + _balanced(model, terms)
    return Losses(total, {k: float(v.detach()) for k, v in terms.items()}, float(label_loss.detach()))


def _balanced(model: Denoiser, terms: dict[str, Tensor]) -> Tensor:
    """The mean over the fields of their losses, each with its weight."""
    fields = model.backbone.fields
    if model.balance is None:
        return torch.stack(list(terms.values())).sum() / fields.num_fields
    zero = torch.zeros((), device=model.label_shift.device)
    seen = torch.tensor([name in terms for name in fields.names], device=zero.device)
    return cast(Tensor, model.balance(torch.stack([terms.get(name, zero) for name in fields.names]), seen))


@dataclass(frozen=True)
class Restoration:
    """The losses of the fields of one batch: ``keep`` [B, N], ``weight`` [B] of the rows, ``hidden`` [B, H], ``read`` by the heads."""

    model: Denoiser
    batch: Batch
    keep: Tensor
    weight: Tensor
    hidden: Tensor
    read: Tensor
    generator: torch.Generator

    def terms(self, behaviours: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted mean loss of every field of which something was masked."""
        fields = self.model.backbone.fields
        outputs = self.model.outputs(self.read)
        found: dict[str, Tensor | None] = {}
        for position, name in enumerate(fields.names):
            masked = self.keep[:, position] == 0
            kind = fields.kinds[position]
            if kind == "vector":
                found[name] = self._vector(name, masked)
            elif kind == "counters":
                found[name] = self._counters(position, masked)
            elif kind == "sequence":
                found[name] = self._sequence(name, outputs[:, position], behaviours[name])
            else:
                row = (masked & (self.batch.ids[:, position] > 0)).nonzero()[:, 0]
                predicted = F.normalize(outputs[row, position], dim=-1)
                found[name] = self._values(position, predicted, self.batch.ids[row, position], row)
        return {name: term for name, term in found.items() if term is not None}

    def _sequence(self, name: str, output: Tensor, masked: Tensor) -> Tensor | None:
        """Masked behaviours [B, L], each predicted from the row and its place; a random sample of them where they are many."""
        model = self.model
        if name in model.backbone.fields.own_lists:  # their values are in no column, so no head restores them
            return None
        number = model.backbone.fields.sequences.index(name)
        row, place = self._sampled(masked.nonzero()).unbind(dim=1)
        # Lookups and not indexing: rows repeat, and their gradients must be summed in a fixed order.
        predicted = F.embedding(row, output) + F.embedding(place, model.places[number])
        column = model.backbone.fields.columns.index(model.backbone.fields.sequence_of[number])
        return self._values(column, F.normalize(predicted, dim=-1), self.batch.sequences[name][row, place], row)

    def _sampled(self, behaviours: Tensor) -> Tensor:
        """At most ``config.behaviours`` per row of the masked behaviours [M, 2]. All are equally likely, so the loss is that of all of
        them in expectation."""
        limit = max(1, math.ceil(self.model.config.behaviours * len(self.keep)))
        if len(behaviours) <= limit:
            return behaviours
        return behaviours[torch.randperm(len(behaviours), generator=self.generator)[:limit].to(behaviours.device)]

    def _values(self, column: int, predicted: Tensor, values: Tensor, row: Tensor) -> Tensor | None:
        if not len(values):
            return None
        model = self.model
        candidates = None if model.small[column] else candidates_of(values, model.config.negatives, self.generator)
        loss = model.field_loss(column, predicted, values, candidates, draws=len(values))
        return self._mean(loss, row)

    def _vector(self, name: str, masked: Tensor) -> Tensor | None:
        """Regression of the direction of a vector: half the squared distance of unit vectors."""
        index, vector = self.model.backbone.fields.vectors.index(name), self.batch.vectors[name]
        row = (masked & ~vector.isnan().any(dim=1)).nonzero()[:, 0]
        if not len(row):
            return None
        predicted = self.model.vector_heads[index](self.hidden[row])
        return self._mean(1.0 - F.cosine_similarity(predicted, vector[row], dim=-1), row)

    def _counters(self, position: int, masked: Tensor) -> Tensor | None:
        """Regression of the standardised counters of a group, the known ones."""
        scale, fields = self.model.backbone.embedding.scale, self.model.backbone.fields
        if scale is None or self.batch.counters is None:
            return None
        group = scale.columns(position - (fields.num_fields - len(fields.counter_groups)))
        values, unknown = scale(self.batch.counters)
        row = (masked & ~unknown[:, group].all(dim=1)).nonzero()[:, 0]
        if not len(row):
            return None
        known = (~unknown[row][:, group]).float()
        error = (self.model.counter_head(self.hidden[row])[:, group] - values[row][:, group]).square()
        return self._mean((error * known).sum(dim=1) / known.sum(dim=1), row)

    def _mean(self, loss: Tensor, row: Tensor) -> Tensor:
        return (loss * self.weight[row]).mean()


def candidates_of(values: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """At most ``limit`` distinct values of the batch."""
    unique = values.unique()
    return unique if len(unique) <= limit else unique[torch.randperm(len(unique), generator=generator)[:limit]]
