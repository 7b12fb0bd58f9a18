"""Encoded rows, the input of the model: numpy on disk and in training (`EncodedRows`), torch in a forward pass (`Batch`).

Only code that makes a batch imports torch, so that reading, encoding and checking data need not wait for it.

Shapes: R rows, B rows of a batch, C categorical-or-numeric fields in model order, L the length of a sequence.
Index 0 of every categorical or numeric field means "unknown"; index 0 inside a sequence is padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from thinktwice.data.evidence import Evidence
from thinktwice.errors import DataError
from thinktwice.files import atomic_file

if TYPE_CHECKING:
    import torch

Rows = slice | np.ndarray


@dataclass(frozen=True)
class Batch:
    """One batch of model inputs: ids [B, C] int64, sequences name -> [B, L] int64, vectors name -> [B, dim] float32,
    weights name of a list -> [B, L] float32, 0 at padding (only of lists with weights).

    A vector row of NaN is a missing vector. ``counters`` [B, K] float32 are for models that read K counters as numbers, NaN for
    unknown; None: all are unknown.
    """

    ids: torch.Tensor
    sequences: Mapping[str, torch.Tensor] = field(default_factory=dict)
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    counters: torch.Tensor | None = None
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def select(self, index: slice | torch.Tensor) -> Batch:
        """The rows at ``index``."""
        return Batch(
            self.ids[index],
            {k: v[index] for k, v in self.sequences.items()},
            {k: v[index] for k, v in self.vectors.items()},
            None if self.counters is None else self.counters[index],
            {k: v[index] for k, v in self.weights.items()},
        )


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows of one part of a training set.

    ids [R, C] int32, sequences name -> [R, L] int32, vectors name -> [R, dim] float32, label [R] float32,
    user [R] int64 (stable hash of the user id for grouping, -1 without users), time [R] int64 microseconds, weight [R] float32
    (how much a row counts in training; None: all the same), weights name of a list -> [R, L] float32. ``evidence`` is stored by the training set and not in the file of the
    rows.
    """

    ids: np.ndarray
    sequences: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    label: np.ndarray
    user: np.ndarray
    time: np.ndarray
    evidence: Evidence | None = None
    weight: np.ndarray | None = None
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def batch(self, rows: Rows) -> Batch:
        """The rows as torch tensors (a copy); ids become int64 and are never cast through floats."""
        import torch

        return Batch(
            torch.from_numpy(self.ids[rows].astype(np.int64)),
            {k: torch.from_numpy(v[rows].astype(np.int64)) for k, v in self.sequences.items()},
            {k: torch.from_numpy(np.array(v[rows], dtype=np.float32)) for k, v in self.vectors.items()},
            weights={k: torch.from_numpy(np.array(v[rows])) for k, v in self.weights.items()},
        )

    def take(self, rows: Rows) -> EncodedRows:
        """The rows at ``rows``, in that order."""
        return EncodedRows(
            self.ids[rows],
            {k: v[rows] for k, v in self.sequences.items()},
            {k: v[rows] for k, v in self.vectors.items()},
            self.label[rows],
            self.user[rows],
            self.time[rows],
            None if self.evidence is None else self.evidence.take(rows),
            None if self.weight is None else self.weight[rows],
            {k: v[rows] for k, v in self.weights.items()},
        )

    def save(self, path: Path | str) -> None:
        tensors = {"ids": self.ids, "label": self.label, "user": self.user, "time": self.time}
        tensors |= {f"sequence.{k}": v for k, v in self.sequences.items()}
        tensors |= {f"vector.{k}": v for k, v in self.vectors.items()}
        tensors |= {f"weights.{k}": v for k, v in self.weights.items()}
        if self.weight is not None:
            tensors["weight"] = self.weight
        with atomic_file(path) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, str(temporary))

    @staticmethod
    def load(path: Path | str) -> EncodedRows:
        try:
            with safe_open(str(path), framework="numpy") as handle:
                tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118 (safe_open is no mapping)
        except Exception as error:  # safetensors raises untyped errors of its own
            raise DataError(f"encoded rows {path} cannot be read ({error}): rebuild the training set") from error
        return EncodedRows(
            tensors["ids"],
            {k.removeprefix("sequence."): v for k, v in tensors.items() if k.startswith("sequence.")},
            {k.removeprefix("vector."): v for k, v in tensors.items() if k.startswith("vector.")},
            tensors["label"],
            tensors["user"],
            tensors["time"],
            weight=tensors.get("weight"),
            weights={k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")},
        )


def table_offsets(num_values: tuple[int, ...]) -> np.ndarray:
    """First row of each field in the joint table, [C] int64."""
    return np.concatenate([[0], np.cumsum(num_values)[:-1]]).astype(np.int64) if num_values else np.zeros(0, np.int64)


def count_values(ids: np.ndarray, num_values: tuple[int, ...]) -> np.ndarray:
    """Number of rows with each value: uint32 [sum(num_values)], aligned with the joint table.

    The count of row 0 of a field (unknown) is 0.
    """
    parts = []
    for column, size in enumerate(num_values):
        counts = np.bincount(ids[:, column], minlength=size).astype(np.uint32)
        counts[0] = 0
        parts.append(counts)
    return np.concatenate(parts) if parts else np.zeros(0, np.uint32)


def num_bytes(rows: EncodedRows) -> int:
    """Size of encoded rows in memory, with their counters."""
    counters = [] if rows.evidence is None else [rows.evidence.counters]
    arrays = [rows.ids, rows.label, *rows.sequences.values(), *rows.vectors.values(), *rows.weights.values(), *counters]
    return sum(array.nbytes for array in arrays)
