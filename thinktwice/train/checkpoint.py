"""Checkpoints of a training: what a killed process needs to continue to bit-identical weights on a CPU.

A location, a folder or ``s3://BUCKET/FOLDER``, belongs to one training. Each run in it (a trial, or the run that is kept) has files
``RUN/STEP.safetensors``: weights, state of the optimizer, position in the data, state of the random generators, and what the caller adds,
such as the best weights so far. A file is written under a new name, whole or not at all, before older ones are removed; so a kill
or a full disk at any moment leaves the last good checkpoint.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import StorageError, TrainingError, reason
from thinktwice.files import full_disk_named, sha256_text
from thinktwice.models.fields import FieldSpace
from thinktwice.storage.open import open_store
from thinktwice.storage.store import Store

FORMAT = "1"
KEPT = 2  # files of a run: the last, and the one before it in case the last is damaged
SUFFIX = ".safetensors"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after ``step`` steps: tensors by name, and ``extra``, a JSON value."""

    step: int
    tensors: dict[str, Tensor]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training.

    Attributes:
        where: a folder, or ``s3://BUCKET/FOLDER``.
        identity: what the training is of, each part by its name for messages; checkpoints of another one are refused.
        every_s: seconds between two checkpoints of a run; 0 writes one after every step.
    """

    where: str
    identity: Mapping[str, str] = field(default_factory=dict)
    every_s: float = 60.0

    def run(self, name: str) -> RunCheckpoints:
        """Those of one run."""
        return RunCheckpoints(self, name)

    def remove(self) -> None:
        """Remove all: the training has written its model."""
        with open_store(self.where) as store:
            for entry in list(store.entries()):
                if entry.key.endswith(SUFFIX):
                    store.remove(entry.key)


def training_checkpoints(
    where: str, data: TrainingSet, fields: FieldSpace, settings: Mapping[str, BaseModel], *, seed: int, start: str = ""
) -> Checkpoints:
    """The checkpoints of a training on a training set; ``start`` is the hash of the weights that it starts from."""
    identity = {
        "schema": sha256_text(fields.model_dump_json()),
        "training set": sha256_text(data.info.model_dump_json()),
        **{name: sha256_text(value.model_dump_json()) for name, value in settings.items()},
        "seed": str(seed),
        "start": start,
        "version of torch": torch.__version__,
    }
    return Checkpoints(where, identity)


class RunCheckpoints:
    """The checkpoints of one run, the newest first."""

    def __init__(self, training: Checkpoints, name: str) -> None:
        self.training, self.name = training, name
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether the last one is old enough for the next."""
        return time.monotonic() - self._written >= self.training.every_s

    def last(self) -> Checkpoint | None:
        """The newest that can be read; None without any.

        Raises:
            TrainingError: it is of another training, named by what differs.
            StorageError: the store cannot be used.
        """
        with open_store(self.training.where) as store:
            for key in reversed(self._keys(store)):
                try:
                    with store.open(key) as file:
                        data = file.read()
                    return self._read(f"{store.uri}{key}", data)
                except (SafetensorError, ValueError, KeyError, StorageError) as error:
                    logger.warning(
                        "checkpoint %s%s cannot be read (%s): the one before it is used", store.uri, key, reason(error)
                    )
        return None

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove all but the last :data:`KEPT`.

        Raises:
            ResourceError: the disk is full. StorageError: the store cannot be used. The earlier checkpoints are then untouched.
        """
        described = {
            "format": FORMAT,
            "step": str(checkpoint.step),
            "identity": json.dumps(dict(self.training.identity), sort_keys=True),
            "extra": json.dumps(checkpoint.extra),
        }
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.tensors.items()}
        key = f"{self.name}/{checkpoint.step:012d}{SUFFIX}"
        with open_store(self.training.where) as store, tempfile.TemporaryDirectory(prefix="thinktwice-") as folder:
            source = Path(folder) / "checkpoint"
            with full_disk_named(Path(f"{store.uri}{key}")):
                source.write_bytes(save(tensors, described))
            store.put_if_absent(key, source)  # one that exists is of the same step, and so the same
            for old in self._keys(store)[:-KEPT]:
                store.remove(old)
        self._written = time.monotonic()

    def _keys(self, store: Store) -> list[str]:
        return [entry.key for entry in store.entries(f"{self.name}/") if entry.key.endswith(SUFFIX)]

    def _read(self, place: str, data: bytes) -> Checkpoint:
        described = _metadata(data)
        if described["format"] != FORMAT:
            raise TrainingError(
                f"checkpoint {place} has format {described['format']}: remove it, or give another location"
            )
        identity = json.loads(described["identity"])
        if different := [part for part, value in self.training.identity.items() if identity.get(part) != value]:
            raise TrainingError(
                f"checkpoint {place} is of a training with another {different[0]}: give another location, or remove it"
            )
        return Checkpoint(int(described["step"]), load(data), json.loads(described["extra"]))


def _metadata(data: bytes) -> dict[str, str]:
    """The text beside the tensors of a safetensors file: its header is JSON after 8 bytes of its length."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        raise ValueError("it is cut")
    header = json.loads(data[8 : 8 + size])
    return dict(header["__metadata__"])


def restore_tensors(current: Mapping[str, Tensor], saved: Mapping[str, Tensor], prefix: str) -> None:
    """Copy the saved tensors with ``prefix`` into the current ones.

    Raises:
        TrainingError: one is missing, or has another shape.
    """
    with torch.no_grad():
        for name, value in current.items():
            found = saved.get(prefix + name)
            if found is None or found.shape != value.shape:
                shape = None if found is None else tuple(found.shape)
                raise TrainingError(
                    f"the checkpoint has {name!r} with the shape {shape} instead of {tuple(value.shape)}: it is of another model, "
                    "give another location, or remove it"
                )
            value.copy_(found)
