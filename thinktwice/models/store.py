"""A model on disk: ``model.json`` (what to build, how to calibrate, where it comes from) and ``weights.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from thinktwice.errors import BundleError
from thinktwice.files import atomic_dir, atomic_file, read_json, write_json
from thinktwice.models.backbone import Backbone, BackboneConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"


class Calibration(BaseModel):
    """p = sigmoid(a * z + b), fitted on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: float = 1.0
    b: float = 0.0


class ModelInfo(BaseModel):
    """What a model file says about itself besides its architecture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str  # "pretrained" or "finetuned"
    calibration: Calibration = Calibration()
    provenance: dict[str, Any] = Field(default_factory=dict)


def write_model(folder: Path | str, model: Backbone, info: ModelInfo, *, with_table: bool = True) -> None:
    """Write the two model files into an existing folder; without the table for a model that shares another one's."""
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if not with_table:
        del tensors["table"]
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, str(temporary))
    value = {"backbone": model.config.model_dump(mode="json"), "fields": model.fields.model_dump(mode="json")}
    write_json(folder / MODEL_FILE, value | info.model_dump(mode="json"))


def save_model(folder: Path | str, model: Backbone, info: ModelInfo) -> None:
    """Write a model folder as a whole; an older one of that name is replaced."""
    with atomic_dir(folder) as temporary:
        write_model(temporary, model, info)


def load_model(folder: Path | str, *, table: Parameter | None = None) -> tuple[Backbone, ModelInfo]:
    """Build and fill the model of a folder; it comes back in evaluation mode.

    A model that was written without its table shares ``table``, the very object.

    Raises:
        BundleError: a file is missing, damaged, or the weights do not fit the description.
    """
    folder = Path(folder)
    try:
        value = read_json(folder / MODEL_FILE)
        config = BackboneConfig.model_validate(value.pop("backbone"))
        fields = FieldSpace.model_validate(value.pop("fields"))
        info = ModelInfo.model_validate(value)
        tensors = load_file(str(folder / WEIGHTS_FILE))
        model = build_backbone(config, fields)
        if "table" not in tensors and table is not None:
            if table.shape != model.table.shape:
                raise ValueError(f"it needs a table of {tuple(model.table.shape)}, not {tuple(table.shape)}")
            model.table = table
            tensors["table"] = table.detach()
        model.load_state_dict(tensors)
    except (OSError, KeyError, AttributeError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise BundleError(f"model in {folder} cannot be read ({error}): train it again") from error
    return model.eval(), info
