"""Models behind one contract: :class:`~thinktwice.models.backbone.Backbone`."""

from thinktwice.models.backbone import BACKBONES, Backbone, BackboneConfig, register_backbone
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone
from thinktwice.models.store import Calibration, ModelInfo, load_model, save_model, write_model

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneConfig",
    "Calibration",
    "FieldSpace",
    "ModelInfo",
    "build_backbone",
    "load_model",
    "register_backbone",
    "save_model",
    "write_model",
]
