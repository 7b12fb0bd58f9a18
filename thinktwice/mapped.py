"""Tensors of a safetensors file as read-only memory maps: workers of one machine share the pages, and nothing is copied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thinktwice.errors import BundleError, reason
from thinktwice.files import parse_json

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


def map_tensors(path: Path | str, expected: Mapping[str, type[np.generic]]) -> dict[str, np.ndarray]:
    """All tensors of a file by name, not writeable; an empty tensor is a plain array.

    Args:
        expected: the type of every tensor that must be there; there may be no other.

    Raises:
        BundleError: the file is missing, truncated, not a safetensors file, or holds other tensors; the message names one.
    """
    path = Path(path)
    try:
        header, start, size = _header(path)
        if different := sorted(header.keys() ^ expected.keys()):
            what = "lacks" if different[0] in expected else "contains the unknown tensor"
            raise ValueError(f"it {what} {different[0]!r}")
        return {name: _mapped(path, start, size, name, value, expected[name]) for name, value in header.items()}
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def tensor_names(path: Path | str) -> set[str]:
    """Names of the tensors of a file; raises a BundleError like :func:`map_tensors`."""
    try:
        return set(_header(Path(path))[0])
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: Exception) -> BundleError:
    return BundleError(f"{path} cannot be read ({reason(error)}): fit the test-time parameters again")


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Descriptions of the tensors by name, where their data begin, and the size of the file."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 0 < length <= min(_MAX_HEADER, size - 8):
            raise ValueError("its header is damaged")
        header = parse_json(handle.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is damaged")
    header.pop("__metadata__", None)
    return header, 8 + length, size


def _mapped(path: Path, start: int, size: int, name: str, value: Any, expected: type[np.generic]) -> np.ndarray:
    match value:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise ValueError("its header is damaged")
    dtype = np.dtype(expected)
    if _DTYPES.get(kind) is not expected:
        raise ValueError(f"it contains {name!r} as {kind} instead of {dtype}")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("its header is damaged")
    length = math.prod(shape) * dtype.itemsize
    if not 0 <= first <= last <= size - start or last - first != length:
        raise ValueError("it is truncated")
    if length == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=tuple(shape))
