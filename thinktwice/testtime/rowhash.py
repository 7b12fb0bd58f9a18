"""Random numbers seeded by a row's content: a row draws the same numbers alone, in a batch, after a restart, on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from thinktwice.splitmix import GOLDEN, mix

if TYPE_CHECKING:
    from thinktwice.data.encoded import Batch


def hash_rows(batch: Batch, salt: int) -> np.ndarray:
    """64-bit hash of the content of every row of ``batch``, uint64 [B]."""
    parts = [batch.ids.numpy()]
    parts += [batch.sequences[name].numpy() for name in sorted(batch.sequences)]
    parts += [batch.vectors[name].numpy() for name in sorted(batch.vectors)]
    parts += [batch.weights[name].numpy() for name in sorted(batch.weights)]
    width = [np.ascontiguousarray(p).view(np.uint8).reshape(len(batch), -1) for p in parts]
    joined = np.concatenate(width, axis=1)
    return np.fromiter((xxhash.xxh3_64_intdigest(row.tobytes(), salt) for row in joined), np.uint64, len(batch))


def uniforms(row_hash: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) per row hash [B], float64 [B, count] (SplitMix64 counted from the hash)."""
    z = mix(row_hash[:, None] + np.arange(count, dtype=np.uint64)[None] * GOLDEN)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
