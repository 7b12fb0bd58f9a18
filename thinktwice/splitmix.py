"""SplitMix64 (Steele, Lea, Flood 2014): the mixer used for counts, draws and hashes of sets.

Stored counts, the key hashes of a quarantine and the draws of every row depend on its constants: never change them.
"""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(key: np.ndarray) -> np.ndarray:
    """Well mixed 64-bit keys, uint64 of the same shape; a bijection. The stream of a seed is ``mix(seed + GOLDEN * [0, 1,
    ...])``."""
    with np.errstate(over="ignore"):
        z = key + GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
