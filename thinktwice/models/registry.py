"""All model architectures by name."""

from __future__ import annotations

import torch

from thinktwice.models.autoint import AutoInt
from thinktwice.models.backbone import BACKBONES, Backbone, BackboneConfig, register_backbone
from thinktwice.models.dcnv2 import DCNv2
from thinktwice.models.deepfm import DeepFM
from thinktwice.models.fields import FieldSpace

register_backbone("deepfm", DeepFM)
register_backbone("dcnv2", DCNv2)
register_backbone("autoint", AutoInt)


def build_backbone(config: BackboneConfig, fields: FieldSpace, *, seed: int = 0) -> Backbone:
    """A freshly initialised model; the same seed gives the same weights and leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BACKBONES[config.name](config, fields)
