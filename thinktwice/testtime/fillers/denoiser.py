"""What the rest of the row makes likely (SGCTR's fill on UTTSI's paths): one more trunk pass per row, shared by its paths.

The doubtful fields of the row are hidden together, and the heads of :mod:`thinktwice.testtime.heads` predict their vectors
from what is left. Fields that are not doubtful keep the mask vector, for they are hardly ever dropped.
"""

from __future__ import annotations

import torch

from thinktwice.models.backbone import Backbone
from thinktwice.testtime.heads import FieldHeads


def row_vectors(
    model: Backbone, heads: FieldHeads, x: torch.Tensor, doubtful: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """Vectors [U, N, D] to put in place of dropped fields of x [U, N, D]; ``doubtful`` [U, n] bool over the heads' fields."""
    hidden = ~doubtful
    mask = x.new_ones(len(x), x.shape[1])
    mask[:, heads.fields] = hidden.to(x.dtype)
    shown = mask[..., None] * x + (1.0 - mask[..., None]) * fill
    predicted = heads.predict(model.trunk(shown))  # [U, n, D]
    out = fill.expand(len(x), -1, -1).clone()
    out[:, heads.fields] = torch.where(doubtful[..., None], predicted, fill[heads.fields])
    return out
