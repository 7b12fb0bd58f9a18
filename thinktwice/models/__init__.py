"""Models with one interface: :class:`~thinktwice.models.backbone.Backbone`.

Names are imported on first use, so that the options of a model can be read without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinktwice.calibration import Calibration
    from thinktwice.models.backbone import BACKBONES, Backbone, register_backbone
    from thinktwice.models.config import (
        AnyBackboneConfig,
        AutoIntConfig,
        BackboneConfig,
        DCNv2Config,
        DeepFMConfig,
        backbone_config,
    )
    from thinktwice.models.fields import FieldSpace
    from thinktwice.models.registry import build_backbone
    from thinktwice.models.store import ModelInfo, load_model, save_model, write_model

__all__ = [
    "BACKBONES",
    "AnyBackboneConfig",
    "AutoIntConfig",
    "Backbone",
    "BackboneConfig",
    "Calibration",
    "DCNv2Config",
    "DeepFMConfig",
    "FieldSpace",
    "ModelInfo",
    "backbone_config",
    "build_backbone",
    "load_model",
    "register_backbone",
    "save_model",
    "write_model",
]

_CONFIGS = ("AnyBackboneConfig", "AutoIntConfig", "BackboneConfig", "DCNv2Config", "DeepFMConfig", "backbone_config")
_WHERE = {
    "Calibration": "thinktwice.calibration",
    **dict.fromkeys(("BACKBONES", "Backbone", "register_backbone"), "thinktwice.models.backbone"),
    **dict.fromkeys(_CONFIGS, "thinktwice.models.config"),
    "FieldSpace": "thinktwice.models.fields",
    "build_backbone": "thinktwice.models.registry",
    **dict.fromkeys(("ModelInfo", "load_model", "save_model", "write_model"), "thinktwice.models.store"),
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "BACKBONES":
        import_module("thinktwice.models.registry")  # registers the built-in backbones
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value
