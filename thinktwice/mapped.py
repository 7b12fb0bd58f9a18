"""Tensors of a safetensors file as read-only memory maps: workers of one machine share the pages, and nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thinktwice.errors import BundleError, reason


def map_tensors(path: Path | str, expected: Mapping[str, type[np.generic]]) -> dict[str, np.ndarray]:
    """All tensors of a file by name, read-only.

    safetensors' torch reader maps the file into memory; its numpy reader would copy.

    Args:
        expected: the dtype of each tensor; the file must contain exactly these.

    Raises:
        BundleError: the file is missing, truncated, not a safetensors file, or contains other tensors; the message names one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        if different := sorted(tensors.keys() ^ expected.keys()):
            problem = "lacks" if different[0] in expected else "contains the unknown tensor"
            raise ValueError(f"it {problem} {different[0]!r}")
        for name, tensor in tensors.items():
            if tensor.dtype != (dtype := np.dtype(expected[name])):
                raise ValueError(f"it contains {name!r} as {tensor.dtype} instead of {dtype}")
            tensor.flags.writeable = False
    except SafetensorError as error:
        raise _unreadable(path, ValueError(f"it is truncated or damaged: {error}")) from error
    except (OSError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    return tensors


def tensor_names(path: Path | str) -> set[str]:
    """Names of the tensors of a file; raises a BundleError like :func:`map_tensors`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: Exception) -> BundleError:
    return BundleError(f"{path} cannot be read ({reason(error)}): fit the test-time parameters again")
