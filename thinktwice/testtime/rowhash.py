"""Randomness that belongs to a row: the same row draws the same numbers alone, in a batch, after a restart, anywhere."""

from __future__ import annotations

import numpy as np
import xxhash

from thinktwice.data.encoded import Batch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_rows(batch: Batch, salt: int) -> np.ndarray:
    """64-bit hash of the content of every row of ``batch``, uint64 [B]."""
    parts = [batch.ids.numpy()]
    parts += [batch.sequences[name].numpy() for name in sorted(batch.sequences)]
    parts += [batch.vectors[name].numpy() for name in sorted(batch.vectors)]
    width = [np.ascontiguousarray(p).view(np.uint8).reshape(len(batch), -1) for p in parts]
    joined = np.concatenate(width, axis=1)
    return np.fromiter((xxhash.xxh3_64_intdigest(row.tobytes(), salt) for row in joined), np.uint64, len(batch))


def uniforms(row_hash: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) per row hash [B], float64 [B, count] (SplitMix64 counted from the hash)."""
    step = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    z = row_hash[:, None] + step[None]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
