"""The choice of a backend on disk: ``backend.json``, and ``backend.onnx`` where it is ONNX Runtime."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from thinktwice.errors import BundleError, reason
from thinktwice.files import read_json, write_json
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends import onnx
from thinktwice.models.backends.backend import Backend, Eager, MakeBackend
from thinktwice.models.backends.choose import Choice, choose_backend, has_bfloat16, suitable
from thinktwice.models.backends.folded import Folded
from thinktwice.models.backends.lower import BFloat16
from thinktwice.models.backends.onnx import ONNX_FILE

BACKEND_FILE = "backend.json"
BACKEND_FILES = (BACKEND_FILE, ONNX_FILE)  # bundles of older versions have neither and use eager torch

logger = logging.getLogger(__name__)


class BackendInfo(BaseModel):
    """Content of ``backend.json``. It contains no times: the same model gives the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Literal["eager", "folded", "onnx", "bfloat16"]


def save_choice(folder: Path | str, eager: Backend) -> Choice:
    """Choose the backend of a model and write the choice into ``folder``.

    ONNX Runtime is skipped if its exporter is not installed.
    """
    folder = Path(folder)
    choice, _ = choice_for(folder, eager)
    if choice.name != "onnx":
        (folder / ONNX_FILE).unlink(missing_ok=True)
    write_json(folder / BACKEND_FILE, {"backend": choice.name})
    return choice


def choice_for(folder: Path, eager: Backend) -> tuple[Choice, MakeBackend]:
    """The backend that :func:`save_choice` chooses, without a record of it; a file of ONNX Runtime is written to ``folder``."""
    made = candidates(folder, eager.model, suitable(eager.model, bfloat16=has_bfloat16()))
    choice = choose_backend(made, eager)
    return choice, made.get(choice.name, Eager)


def save_member(folder: Path, member: Backbone, choice: Choice) -> None:
    """Write the file that a further trunk needs if the model has this ``choice``: ``backend.onnx`` for ONNX Runtime."""
    if choice.name == "onnx":
        onnx.export(member, folder)


def open_member(folder: Path | str) -> MakeBackend | None:
    """The backend of a further trunk that :func:`save_member` wrote; None without a file, or without ONNX Runtime.

    Raises:
        BundleError: the file is damaged.
    """
    return onnx.load(folder) if (Path(folder) / ONNX_FILE).is_file() and _installed("onnxruntime") else None


def candidates(folder: Path, model: Backbone, names: Sequence[str]) -> dict[str, MakeBackend]:
    """The backends with these names, in their order; the file of ONNX Runtime is written to ``folder``."""
    backends: dict[str, MakeBackend] = {}
    for name in names:
        if name != "onnx":
            backends[name] = {"folded": Folded, "bfloat16": BFloat16}[name]
        elif _installed("onnx", "onnxscript", "onnxruntime"):
            try:
                onnx.export(model, folder)
                backends[name] = onnx.load(folder)
            except Exception as error:  # noqa: BLE001  (the exporter's classes share no base)
                (folder / ONNX_FILE).unlink(missing_ok=True)
                logger.warning("ONNX Runtime cannot serve %s (%s): eager torch does", model.config.name, reason(error))
    return backends


def open_backend(folder: Path | str) -> MakeBackend:
    """The backend that a folder was packaged with; eager torch if none was chosen or its library is not installed.

    Raises:
        BundleError: a file is damaged.
    """
    folder = Path(folder)
    if not (folder / BACKEND_FILE).is_file():
        return Eager
    try:
        name = BackendInfo.model_validate(read_json(folder / BACKEND_FILE)).backend
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder / BACKEND_FILE} cannot be read ({reason(error)}): package the model again"
        ) from error
    if name == "onnx":
        if _installed("onnxruntime"):
            return onnx.load(folder)
        logger.warning("the model was packaged for ONNX Runtime, which is not installed: eager torch scores it")
        return Eager
    return {"eager": Eager, "folded": Folded, "bfloat16": BFloat16}[name]


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
