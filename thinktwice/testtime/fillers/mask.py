"""The learned vector of an unknown value: what training taught the model to expect where nothing is known."""

from __future__ import annotations

import torch

from thinktwice.models.backbone import Backbone
from thinktwice.testtime.reliability import Reliability


def vectors(model: Backbone, reliability: Reliability) -> torch.Tensor:
    """One vector per field, [N, D]."""
    return model.fill().detach()
