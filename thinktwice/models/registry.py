"""All model architectures by name."""

from __future__ import annotations

import torch

from thinktwice.models.autoint import AutoInt
from thinktwice.models.backbone import EMBEDDING, Backbone, backbone_class, register_backbone
from thinktwice.models.config import BackboneConfig
from thinktwice.models.dcnv2 import DCNv2
from thinktwice.models.deepfm import DeepFM
from thinktwice.models.din import DIN
from thinktwice.models.fields import FieldSpace
from thinktwice.models.finalmlp import FinalMLP
from thinktwice.models.fm import FM
from thinktwice.models.hstu import HSTU
from thinktwice.models.lr import LR
from thinktwice.models.masknet import MaskNet

register_backbone("lr", LR)
register_backbone("fm", FM)
register_backbone("deepfm", DeepFM)
register_backbone("dcnv2", DCNv2)
register_backbone("autoint", AutoInt)
register_backbone("masknet", MaskNet)
register_backbone("finalmlp", FinalMLP)
register_backbone("din", DIN)
register_backbone("hstu", HSTU)


def build_backbone(config: BackboneConfig, fields: FieldSpace, *, seed: int = 0) -> Backbone:
    """A newly initialised model; the same seed gives the same weights. The global random generator is left unchanged.

    Raises:
        ValueError: the backbone uses a name of the embedding for one of its own parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = backbone_class(config.name)(config, fields)
    _check_names(model)
    return model


def stored_name(name: str) -> str:
    """The name of a model's tensor on disk: tensors of the embedding lose its prefix, as in ``table``."""
    return name.removeprefix(EMBEDDING)


def _check_names(model: Backbone) -> None:
    names = list(model.state_dict())
    used = {name for name in names if not name.startswith(EMBEDDING)}
    if clashes := sorted(used & {stored_name(name) for name in names if name.startswith(EMBEDDING)}):
        raise ValueError(
            f"the backbone {model.config.name!r} has a part of its own named {clashes[0]!r}, which files keep for the embedding: "
            "choose another name"
        )
