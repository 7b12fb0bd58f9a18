"""The mean of a field's vectors, each as often as training saw its value: the average row instead of the unknown one.

Sequences and vectors, which are never masked, keep their learned vectors.
"""

from __future__ import annotations

import torch

from thinktwice.models.backbone import Backbone
from thinktwice.testtime.reliability import DECODED, Reliability


def vectors(model: Backbone, reliability: Reliability) -> torch.Tensor:
    """One vector per field, [N, D]."""
    out = model.fill().detach().clone()
    count = torch.from_numpy(DECODED[reliability.counts]).to(out.dtype)
    for column, (start, size) in enumerate(zip(reliability.offsets, reliability.num_values, strict=True)):
        weight = count[start : start + size]
        if weight.sum() > 0:
            out[column] = weight @ model.embedding.table.detach()[start : start + size] / weight.sum()
    return out
