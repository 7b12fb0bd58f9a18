"""Whether an array is a view of a mapped file, as the operating system lists it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

MAPS = Path("/proc/self/maps")


def is_mapped(array: np.ndarray, path: Path) -> bool:
    """Whether all bytes of `array` are in a memory map of the file `path` in this process."""
    if not MAPS.is_file():
        pytest.skip("this system does not list its memory maps")
    first, last = (address for address in np.lib.array_utils.byte_bounds(array))
    for line in MAPS.read_text("utf-8").splitlines():
        span, _, file = line.partition(" ")
        start, end = (int(part, 16) for part in span.split("-"))
        if file.endswith(f" {path.resolve()}") and start <= first and last <= end:
            return True
    return False
