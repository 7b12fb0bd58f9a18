"""The vectors that take the place of dropped values."""

from __future__ import annotations

from collections.abc import Callable

import torch

from thinktwice.models.backbone import Backbone
from thinktwice.testtime.config import FillerKind
from thinktwice.testtime.heads import FieldHeads
from thinktwice.testtime.reliability import DECODED, Reliability


def mask_vectors(model: Backbone, reliability: Reliability) -> torch.Tensor:
    """The learned vector of an unknown value per field, [N, D]: what training taught the model to expect where nothing is known."""
    return model.fill().detach()


def mean_vectors(model: Backbone, reliability: Reliability) -> torch.Tensor:
    """The mean of a field's vectors, each as often as training saw its value, [N, D]: the average row instead of the unknown one.

    Sequences and vectors, which are never masked, keep their learned vectors.
    """
    out = model.fill().detach().clone()
    count = torch.from_numpy(DECODED[reliability.counts]).to(out.dtype)
    for column, (start, size) in enumerate(zip(reliability.offsets, reliability.num_values, strict=True)):
        weight = count[start : start + size]
        if weight.sum() > 0:
            out[column] = weight @ model.embedding.table.detach()[start : start + size] / weight.sum()
    return out


def row_vectors(
    model: Backbone, heads: FieldHeads, x: torch.Tensor, uncertain: torch.Tensor, fill: torch.Tensor
) -> torch.Tensor:
    """What the rest of the row makes likely (SGCTR's fill on UTTSI's paths): one more trunk pass per row, shared by its paths.

    The uncertain fields of the row are hidden together, and the heads of :mod:`thinktwice.testtime.heads` predict their vectors
    from what is left. Fields that are not uncertain keep the mask vector, for they are hardly ever dropped.

    Returns:
        vectors [U, N, D] to put in place of dropped fields of x [U, N, D]; ``uncertain`` [U, n] bool over the heads' fields.
    """
    hidden = ~uncertain
    mask = x.new_ones(len(x), x.shape[1])
    mask[:, heads.fields] = hidden.to(x.dtype)
    shown = mask[..., None] * x + (1.0 - mask[..., None]) * fill
    predicted = heads.predict(model.trunk(shown))  # [U, n, D]
    out = fill.expand(len(x), -1, -1).clone()
    out[:, heads.fields] = torch.where(uncertain[..., None], predicted, fill[heads.fields])
    return out


#: Vectors per field [N, D] for the base pass. The denoiser's depend on the row, so they fill its paths only.
FILLERS: dict[FillerKind, Callable[[Backbone, Reliability], torch.Tensor]] = {
    "mask": mask_vectors,
    "mean": mean_vectors,
    "denoiser": mask_vectors,
}
