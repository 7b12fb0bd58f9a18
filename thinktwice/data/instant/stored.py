"""Counters of a training set on disk: one array per part, and the means and spreads that standardise them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.log_counters import CHUNK_ROWS, log_counters, log_rows
from thinktwice.errors import BundleError, DataError, reason
from thinktwice.files import read_json, write_json
from thinktwice.hashing import Sha256

COUNTERS_FILE = "counters.json"
CLIP = 4.0  # standard deviations


class CounterScale(BaseModel):
    """Means and standard deviations of the counters over the known values of train; content of ``counters.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    definition: Sha256  # of :attr:`Definition.hash`
    names: tuple[str, ...]
    means: tuple[float, ...]
    sds: tuple[Annotated[float, Field(gt=0)], ...]  # 1 for a constant counter

    @model_validator(mode="after")
    def _consistent(self) -> CounterScale:
        if not len(self.names) == len(self.means) == len(self.sds):
            raise ValueError("'names', 'means' and 'sds' are of different lengths")
        return self

    def standardized(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Counters [n, C] in standard deviations from their means, clipped at 4; unknown is 0."""
        out = (values - np.asarray(self.means, np.float32)) / np.asarray(self.sds, np.float32)
        return np.nan_to_num(np.clip(out, -CLIP, CLIP), copy=False, nan=0.0)

    def save(self, folder: Path | str) -> None:
        """Write ``counters.json`` into ``folder``."""
        write_json(Path(folder) / COUNTERS_FILE, self.model_dump(mode="json"))

    @staticmethod
    def load(folder: Path | str) -> CounterScale:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: the file is missing or damaged.
        """
        path = Path(folder) / COUNTERS_FILE
        try:
            return CounterScale.model_validate(read_json(path))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({reason(error)}): build it again") from error


def write_counters(frame: pl.DataFrame, definition: Definition, folder: Path, parts: Mapping[str, int]) -> CounterScale:
    """Write ``<part>.counters.npy`` for every part, and ``counters.json``.

    Args:
        frame: all rows of the clean log in time order, with their part in ``split``.
        parts: rows of each part; ``train`` fits the scale.
    """
    rows = log_rows(lambda name: frame[name], definition)
    split = frame["split"]
    width, start = len(definition.names), 0
    spread = _Spread(width)
    with ExitStack() as stack:
        files = {part: stack.enter_context(counters_path(folder, part).open("wb")) for part in parts}
        for part, file in files.items():
            header = {"descr": "<f4", "fortran_order": False, "shape": (parts[part], width)}
            np.lib.format.write_array_header_1_0(file, header)
        for block in log_counters(rows, definition, folder, CHUNK_ROWS):
            of = split.slice(start, len(block)).to_numpy()
            start += len(block)
            for part, file in files.items():
                chosen = block[of == part]
                file.write(chosen.data)
                if part == "train":
                    spread.add(chosen)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    scale = CounterScale(definition=definition.hash, names=definition.names, means=spread.means, sds=spread.sds)
    scale.save(folder)
    return scale


def counters_path(folder: Path, part: str) -> Path:
    """The array of one part."""
    return folder / f"{part}.counters.npy"


def read_counters(folder: Path, part: str, rows: int, width: int) -> npt.NDArray[np.float32]:
    """Counters of one part as a read-only memory map, float32 [rows, width]; NaN is unknown.

    Raises:
        DataError: the file is missing, damaged, or of another shape.
    """
    path = counters_path(folder, part)
    try:
        array: Any = np.load(path, mmap_mode="r" if rows and width else None, allow_pickle=False)
        if array.dtype != np.float32 or array.shape != (rows, width):
            raise ValueError(f"it contains {array.dtype} of {list(array.shape)} instead of float32 of {[rows, width]}")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"counters {path} cannot be read ({reason(error)}): rebuild the training set") from error
    return array


class _Spread:
    """Means and standard deviations of columns, accumulated by chunk; NaN is ignored."""

    def __init__(self, width: int) -> None:
        self._number, self._mean, self._scatter = np.zeros(width), np.zeros(width), np.zeros(width)

    def add(self, block: npt.NDArray[np.float32]) -> None:
        values = block.astype(np.float64)
        known = ~np.isnan(values)
        values[~known] = 0.0
        number = known.sum(axis=0)
        mean = values.sum(axis=0) / np.maximum(number, 1)
        scatter = (np.where(known, values - mean, 0.0) ** 2).sum(axis=0)
        total = self._number + number
        step = np.where(number > 0, mean - self._mean, 0.0)
        share = number / np.maximum(total, 1)
        self._scatter += scatter + step**2 * self._number * share
        self._mean += step * share
        self._number = total

    @property
    def means(self) -> tuple[float, ...]:
        return tuple(self._mean.tolist())

    @property
    def sds(self) -> tuple[float, ...]:
        sd = np.sqrt(self._scatter / np.maximum(self._number, 1))
        return tuple(np.where(sd > 1e-6, sd, 1.0).tolist())
