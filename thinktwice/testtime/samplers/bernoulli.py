"""Guided random paths (UTTSI, reconstruction): a field is kept with probability sqrt(support), in antithetic pairs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from thinktwice.testtime.options import Options, Share
from thinktwice.testtime.rowhash import uniforms
from thinktwice.testtime.samplers.paths import Paths, SamplerInput, distinct

KEEP_MIN = 0.2  # no field is dropped from more than 80 % of paths


class Guided(Options):
    """Base of samplers with a keep probability per field."""

    pair_share: Share = 0.0  # weight of pair support, the remainder being value support

    def keep_probability(self, inputs: SamplerInput) -> np.ndarray:
        """Probability [U, n] that a path keeps a field: sqrt of its support, mixed with pair support if pairs are counted."""
        r = inputs.r
        if self.pair_share > 0 and inputs.pairs is not None and r.shape[1] > 1:
            n = r.shape[1]
            among = (inputs.pairs.sum(axis=2) - 1.0) / (n - 1)  # subtract the diagonal, which is 1
            r = (1 - self.pair_share) * r + self.pair_share * among
        return np.maximum(np.sqrt(r), KEEP_MIN)


class Bernoulli(Guided):
    """Independent draws, field by field."""

    kind: Literal["bernoulli"] = "bernoulli"

    def draw(self, inputs: SamplerInput, max_paths: int) -> Paths:
        """Up to ``max_paths`` paths per row."""
        return antithetic(self.keep_probability(inputs), inputs, max_paths)


def antithetic(keep: np.ndarray, inputs: SamplerInput, most: int) -> Paths:
    """Paths that keep fields with probability ``keep`` [U, n], drawn alternately as u and 1 - u."""
    rows, fields = keep.shape
    pairs = most // 2
    u = uniforms(inputs.row_hash, pairs * fields).reshape(rows, pairs, 1, fields)
    uniform = np.concatenate([u, 1.0 - u], axis=2).reshape(rows, 2 * pairs, fields)
    mask = ((uniform < keep[:, None]) | (keep[:, None] >= 1)) & inputs.kept[:, None]
    return distinct(mask, inputs.kept, inputs.wanted)
