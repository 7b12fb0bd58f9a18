"""A model on disk: ``model.json`` (architecture, calibration, origin) and ``weights.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from thinktwice.calibration import MAX_MAGNITUDE, Calibration
from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_dir, atomic_file, read_json, write_json
from thinktwice.models.backbone import Backbone
from thinktwice.models.config import AnyBackboneConfig, config_class
from thinktwice.models.fields import FieldSpace
from thinktwice.models.registry import build_backbone, stored_name

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
MODEL_FILES = (MODEL_FILE, WEIGHTS_FILE)
FORMAT = 2
_OPTIONS_OF_FORMAT_1 = {"cross_layers", "attention_layers", "attention_heads", "attention_width"}


class ModelInfo(BaseModel):
    """Content of a model file in addition to its architecture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str  # "pretrained" or "finetuned"
    calibration: Calibration = Calibration()
    provenance: dict[str, Any] = Field(default_factory=dict)


def write_model(folder: Path | str, model: Backbone, info: ModelInfo, *, with_table: bool = True) -> None:
    """Write the two model files into an existing folder; without the table if the model shares another model's."""
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in _by_stored_name(model).items()}
    if not with_table:
        del tensors["table"]
    with atomic_file(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, str(temporary))
    file = ModelFile(format=FORMAT, backbone=model.config, fields=model.fields, **dict(info))
    write_json(folder / MODEL_FILE, file.model_dump(mode="json"))


def save_model(folder: Path | str, model: Backbone, info: ModelInfo) -> None:
    """Write a model folder atomically; an existing folder of that name is replaced."""
    with atomic_dir(folder) as temporary:
        write_model(temporary, model, info)


def _by_stored_name(model: Backbone) -> dict[str, Tensor]:
    return {stored_name(name): value for name, value in model.state_dict().items()}


class ModelFile(ModelInfo):
    """Content of ``model.json``."""

    format: StrictInt
    backbone: AnyBackboneConfig
    fields: FieldSpace


def described_model(folder: Path | str) -> ModelFile:
    """The description of the model in a folder, without its weights.

    Raises:
        BundleError: it is missing or damaged.
    """
    return _read_model_file(Path(folder) / MODEL_FILE)


def _read_model_file(path: Path) -> ModelFile:
    try:
        value = read_json(path)
        if isinstance(value, dict):
            if "format" not in value:
                value = _from_format_1(value)
            elif type(version := value["format"]) is int and version != FORMAT:
                raise BundleError(f"{path} has format {version}, this version reads {FORMAT} and 1: train it again")
            _refuse_code(value.get("backbone"))
        return ModelFile.model_validate(value)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({reason(error)}): train it again") from error


def _refuse_code(backbone: object) -> None:
    """A file names a backbone that this process knows, never a class to import."""
    if isinstance(backbone, dict) and ":" in str(backbone.get("name", "")):
        raise ValueError(f"its backbone {backbone['name']!r} is not a name")


def _from_format_1(value: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had no format number, and contained the options of all backbones whichever was used."""
    backbone = value.get("backbone")
    if isinstance(backbone, dict) and isinstance(name := backbone.get("name", "deepfm"), str):
        options = config_class(name).model_fields
        backbone = {
            key: option for key, option in backbone.items() if key in options or key not in _OPTIONS_OF_FORMAT_1
        }
        value = value | {"backbone": backbone}
    return value | {"format": FORMAT}


def load_model(
    folder: Path | str, *, table: Parameter | None = None, fields: FieldSpace | None = None
) -> tuple[Backbone, ModelInfo]:
    """Build the model of a folder and load its weights; it is returned in evaluation mode.

    Args:
        table: the table that a model written without one shares (the object, not a copy).
        fields: the fields that the model must read, apart from counters; None for any.

    Raises:
        BundleError: a file is missing or damaged, or the weights do not fit the description or are not plausible numbers.
    """
    folder = Path(folder)
    described = described_model(folder)
    if fields is not None and described.fields.without_counters() != fields:
        raise BundleError(f"{folder / MODEL_FILE} describes other fields than the encoder: train and package again")
    info = ModelInfo(stage=described.stage, calibration=described.calibration, provenance=described.provenance)
    try:
        with torch.device("meta"):  # shapes only: a wrong description must not fill the memory
            expected = _by_stored_name(build_backbone(described.backbone, described.fields))
        tensors = read_tensors(folder / WEIGHTS_FILE, expected, optional=() if table is None else ("table",))
        model = build_backbone(described.backbone, described.fields)
        if "table" not in tensors and table is not None:
            if table.shape != model.embedding.table.shape:
                raise ValueError(f"it needs a table of {tuple(model.embedding.table.shape)}, not {tuple(table.shape)}")
            model.embedding.table = table
            tensors["table"] = table.detach()
        model.load_state_dict({name: tensors[stored_name(name)] for name in model.state_dict()})
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise BundleError(f"model in {folder} cannot be read ({reason(error)}): train it again") from error
    return model.eval(), info


def read_tensors(path: Path, expected: Mapping[str, Tensor], optional: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read a safetensors file that must contain finite tensors with the names, shapes and types of ``expected``.

    Raises:
        BundleError: it is missing, damaged, or contains other tensors; the message names the tensor.
    """

    def refuse(problem: str) -> BundleError:
        return BundleError(f"{path} {problem}: get it again, or train it again")

    tensors = {}
    try:
        with safe_open(str(path), "pt") as file:
            names = set(file.keys())
            if different := sorted(names ^ set(expected) - (set(optional) - names)):
                raise refuse(
                    f"{'lacks' if different[0] in expected else 'contains the unknown tensor'} {different[0]!r}"
                )
            for name in sorted(names):
                shape, like = tuple(file.get_slice(name).get_shape()), expected[name]
                if shape != tuple(like.shape):
                    raise refuse(f"contains {name!r} with the shape {shape} instead of {tuple(like.shape)}")
                value = file.get_tensor(name)
                if value.dtype != like.dtype:
                    raise refuse(f"contains {name!r} as {value.dtype} instead of {like.dtype}")
                tensors[name] = value
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise refuse(f"cannot be read ({reason(error)})") from error
    for name, value in tensors.items():
        if not plausible(value):
            raise refuse(f"contains numbers in {name!r} that are not finite, or above {MAX_MAGNITUDE:,.0f}")
    return tensors


def plausible(value: Tensor) -> bool:
    """Whether all numbers are finite and no magnitude is above :data:`MAX_MAGNITUDE`, in one pass without a copy."""
    if value.numel() == 0 or not value.is_floating_point():
        return True
    low, high = torch.aminmax(value)  # NaN where any number is NaN
    return bool(low >= -MAX_MAGNITUDE) and bool(high <= MAX_MAGNITUDE)
