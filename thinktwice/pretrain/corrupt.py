"""The forward process: every field, and the label, is masked with a probability given by the row's diffusion time."""

from __future__ import annotations

import torch
from torch import Tensor

from thinktwice.pretrain.denoiser import HIDDEN_LABEL


def corrupt(label: Tensor, num_fields: int, label_hidden: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masks of one batch: ``keep`` [B, N] of 0 and 1, and the label token [B] in {0, 1, HIDDEN_LABEL}.

    The mask rate of a row is uniform over (0, 1], stratified over the batch. The label is hidden at the same rate, and
    additionally in a share ``label_hidden`` of the rows.
    """
    rows = len(label)
    start = torch.rand((), generator=generator)
    rate = 1.0 - (start + torch.arange(rows) / rows) % 1.0  # (0, 1]
    keep = (torch.rand(rows, num_fields, generator=generator) >= rate[:, None]).float()
    hidden = torch.rand(rows, generator=generator) < rate
    hidden |= torch.rand(rows, generator=generator) < label_hidden
    token = torch.where(hidden, torch.full_like(label, HIDDEN_LABEL, dtype=torch.int64), label.long())
    return keep, token
