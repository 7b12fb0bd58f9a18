"""The forward process: every field, and the label, is masked with a probability given by the row's diffusion time.

Shapes: B rows, N fields, L values of a sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thinktwice.data.encoded import Batch
from thinktwice.models.fields import FieldSpace
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.denoiser import HIDDEN_LABEL


def mask_rates(rows: int, config: PretrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask rates [B] of rows, and the weights [B] of their losses. Times are uniform over (0, 1], stratified over the batch."""
    start = torch.rand((), generator=generator)
    time = 1.0 - (start + torch.arange(rows) / rows) % 1.0  # (0, 1]
    if config.schedule == "fixed":
        return torch.full((rows,), config.fixed_rate), torch.ones(rows)
    if config.schedule == "linear":
        rate, slope = time, torch.ones(rows)
    else:
        rate = 2.0 * torch.sin(0.25 * math.pi * time).square()  # 1 - cos, precise near 0
        slope = 0.5 * math.pi * torch.sin(0.5 * math.pi * time)
    if config.loss_weight == "uniform":
        return rate, torch.ones(rows)
    return rate, (slope / rate.clamp_min(1e-6)).clamp_max(config.most_weight)


def corrupt(
    label: Tensor, num_fields: int, label_hidden: float, generator: torch.Generator, rate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masks of one batch: ``keep`` [B, N] of 0 and 1, and the label token [B] in {0, 1, HIDDEN_LABEL}.

    ``rate`` [B] is the mask rate of each row, by default that of the linear schedule. The label is hidden at the same rate, and
    additionally in a share ``label_hidden`` of the rows.
    """
    rows = len(label)
    if rate is None:
        rate, _ = mask_rates(rows, PretrainConfig(), generator)
    keep = (torch.rand(rows, num_fields, generator=generator) >= rate[:, None]).float()
    hidden = torch.rand(rows, generator=generator) < rate
    hidden |= torch.rand(rows, generator=generator) < label_hidden
    token = torch.where(hidden, torch.full_like(label, HIDDEN_LABEL, dtype=torch.int64), label.long())
    return keep, token


@dataclass(frozen=True)
class Corrupted:
    """A batch with values masked, and which behaviours [B, L] of each sequence were."""

    batch: Batch
    behaviours: dict[str, Tensor]


def corrupt_batch(
    batch: Batch, fields: FieldSpace, keep: Tensor, rate: Tensor, generator: torch.Generator
) -> Corrupted:
    """Mask the fields that ``keep`` [B, N] does not keep, and each behaviour of a sequence at the ``rate`` [B] of its row.

    A masked value is an unknown one: the model sees the learned vector of its field. A masked behaviour is absent, and a sequence
    without any is the learned vector. What is masked is gone before the row is embedded, so no part of a model can see it.
    """
    position = {name: i for i, name in enumerate(fields.names)}
    gone = keep == 0
    behaviours = {
        name: (torch.rand(values.shape, generator=generator) < rate[:, None]) & (values != 0)
        for name, values in batch.sequences.items()
    }
    counters = batch.counters
    if counters is not None:
        counters = counters.clone()
        first = fields.num_fields - len(fields.counter_groups)
        for number, group in enumerate(fields.counter_groups):
            columns = torch.tensor(group.columns)
            counters[:, columns] = counters[:, columns].masked_fill(gone[:, first + number, None], math.nan)
    masked = Batch(
        batch.ids.masked_fill(gone[:, : batch.ids.shape[1]], 0),
        {name: values.masked_fill(behaviours[name], 0) for name, values in batch.sequences.items()},
        {name: value.masked_fill(gone[:, position[name], None], math.nan) for name, value in batch.vectors.items()},
        counters,
        batch.weights,
    )
    return Corrupted(masked, behaviours)
