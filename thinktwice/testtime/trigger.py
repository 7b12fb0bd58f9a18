"""Which rows are unsure. Every signal is in 0..1 and depends on the row alone.

``epistemic`` is what counts know (support of the values), ``entropy`` what the model knows (how near its score is to a
coin flip). ``dual`` is high where support is thin, higher where the score is open too: a well supported coin flip is
label noise, and more passes cannot remove that.
"""

from __future__ import annotations

import numpy as np

from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.rowhash import uniforms


def epistemic(r: np.ndarray, open_fields: np.ndarray, importance: tuple[float, ...]) -> np.ndarray:
    """Share of support that is missing, [B]: 1 - weighted mean of r [B, N] over the unprotected fields; 0 without any."""
    if len(open_fields) == 0:
        return np.zeros(len(r))
    weight = np.asarray(importance)[open_fields] if importance else np.ones(len(open_fields))
    if weight.sum() <= 0:
        return np.zeros(len(r))
    # A sum field by field and not a matrix product, whose bits depend on the number of rows.
    missing = np.zeros(len(r))
    for field, share in zip(open_fields, weight / weight.sum(), strict=True):
        missing += share * (1.0 - r[:, field])
    return np.clip(missing, 0.0, 1.0)


def entropy(p: np.ndarray) -> np.ndarray:
    """Binary entropy of probabilities p [B] in bits."""
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return -(q * np.log2(q) + (1 - q) * np.log2(1 - q))


def signal(config: TestTimeConfig, missing: np.ndarray, bits: np.ndarray, row_hash: np.ndarray) -> np.ndarray:
    """The trigger's signal [B] of rows with epistemic signal ``missing`` and entropy ``bits``."""
    if config.trigger == "never":
        return np.full(len(missing), -np.inf)
    if config.trigger == "always":
        return np.full(len(missing), np.inf)
    if config.trigger == "entropy":
        return bits
    if config.trigger == "random":
        return uniforms(row_hash ^ np.uint64(0xA5A5A5A5), 1)[:, 0]
    return missing * (config.entropy_floor + (1 - config.entropy_floor) * bits)


def num_paths(config: TestTimeConfig, value: np.ndarray) -> np.ndarray:
    """Paths [B] for signals ``value`` [B]: 0 up to the threshold, then even numbers from 2 to ``max_paths`` with the signal."""
    width = max(config.signal_max - config.threshold, 1e-12)
    depth = np.clip((value - config.threshold) / width, 0.0, 1.0)
    wanted = 2 * np.maximum(np.ceil(config.max_paths / 2 * depth), 1).astype(np.int64)
    return np.where(value > config.threshold, np.minimum(wanted, 2 * (config.max_paths // 2)), 0)
