"""What stands in the place of a dropped value: one file per filler."""

from __future__ import annotations

from collections.abc import Callable

import torch

from thinktwice.models.backbone import Backbone
from thinktwice.testtime.config import FillerKind
from thinktwice.testtime.fillers import denoiser, mask, mean
from thinktwice.testtime.reliability import Reliability

#: Vectors per field [N, D] for the base pass. The denoiser's depend on the row, so they fill its paths only.
FILLERS: dict[FillerKind, Callable[[Backbone, Reliability], torch.Tensor]] = {
    "mask": mask.vectors,
    "mean": mean.vectors,
    "denoiser": mask.vectors,
}
row_vectors = denoiser.row_vectors

__all__ = ["FILLERS", "row_vectors"]
