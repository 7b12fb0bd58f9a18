"""Models behind one contract: :class:`~thinktwice.models.backbone.Backbone`."""

from thinktwice.models.backbone import Backbone, BackboneConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import BACKBONES, build_backbone
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
    "save_model",
    "write_model",
]
