"""Tensors of a safetensors file as read-only memory maps: workers of one machine share the pages, and nothing is copied."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from thinktwice.errors import BundleError

_DTYPES = {
    "U8": np.uint8,
    "BOOL": np.bool_,
    "U32": np.uint32,
    "U64": np.uint64,
    "I32": np.int32,
    "I64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}
_MAX_HEADER = 1 << 20


def map_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """All tensors of a file by name, not writeable; an empty tensor is a plain array.

    Raises:
        BundleError: the file is missing, truncated, or no safetensors file of plain numbers.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= min(_MAX_HEADER, size - 8):
                raise ValueError("its header is damaged")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        return {name: _mapped(path, 8 + length, size, value) for name, value in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read ({error}): fit the test-time parameters again") from error


def _mapped(path: Path, start: int, size: int, value: dict) -> np.ndarray:
    dtype, shape = np.dtype(_DTYPES[value["dtype"]]), tuple(value["shape"])
    first, last = value["data_offsets"]
    expected = math.prod(shape) * dtype.itemsize
    if not 0 <= first <= last <= size - start or last - first != expected:
        raise ValueError("it is truncated")
    if expected == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=shape)
