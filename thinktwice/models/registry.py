"""All model architectures by name."""

from __future__ import annotations

import torch

from thinktwice.models.autoint import AutoInt
from thinktwice.models.backbone import BACKBONES, EMBEDDING, Backbone, register_backbone
from thinktwice.models.config import BackboneConfig
from thinktwice.models.dcnv2 import DCNv2
from thinktwice.models.deepfm import DeepFM
from thinktwice.models.fields import FieldSpace

register_backbone("deepfm", DeepFM)
register_backbone("dcnv2", DCNv2)
register_backbone("autoint", AutoInt)


def build_backbone(config: BackboneConfig, fields: FieldSpace, *, seed: int = 0) -> Backbone:
    """A freshly initialised model; the same seed gives the same weights and leaves the global generator as it was.

    Raises:
        ValueError: the class of the backbone uses a name of the embedding for a part of its own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BACKBONES[config.name](config, fields)
    _check_names(model)
    return model


def stored_name(name: str) -> str:
    """What a tensor of a model is called on disk: those of the embedding without its prefix, such as ``table``."""
    return name.removeprefix(EMBEDDING)


def _check_names(model: Backbone) -> None:
    names = list(model.state_dict())
    used = {name for name in names if not name.startswith(EMBEDDING)}
    if taken := sorted(used & {stored_name(name) for name in names if name.startswith(EMBEDDING)}):
        raise ValueError(
            f"the backbone {model.config.name!r} has a part of its own named {taken[0]!r}, which files keep for the embedding: "
            "choose another name"
        )
