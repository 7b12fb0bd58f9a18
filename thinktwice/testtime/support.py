"""Two measures per row: missing support of its values, and entropy of its score."""

from __future__ import annotations

import numpy as np


def missing_support(r: np.ndarray, maskable_fields: np.ndarray, importance: tuple[float, ...]) -> np.ndarray:
    """Share of support that is missing, [B]: 1 - weighted mean of r [B, N] over the unprotected fields; 0 without any."""
    if len(maskable_fields) == 0:
        return np.zeros(len(r))
    weight = np.asarray(importance)[maskable_fields] if importance else np.ones(len(maskable_fields))
    if weight.sum() <= 0:
        return np.zeros(len(r))
    # Not a matrix product, whose bits depend on the number of rows.
    missing = ((1.0 - r.take(maskable_fields, axis=1)) * (weight / weight.sum())).sum(axis=1)
    return np.clip(missing, 0.0, 1.0)


def entropy(p: np.ndarray) -> np.ndarray:
    """Binary entropy of probabilities p [B] in bits."""
    q = np.minimum(np.maximum(p, 1e-12), 1 - 1e-12)  # np.clip takes twice as long
    return -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
