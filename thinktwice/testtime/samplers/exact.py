"""Exact paths: if few fields are uncertain, all their subsets with their probabilities replace random draws.

Few means at most three, and no more subsets than a row may have paths. Other rows are sampled.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from thinktwice.testtime.samplers.bernoulli import Guided, antithetic
from thinktwice.testtime.samplers.paths import Paths, SamplerInput

UNCERTAIN = 0.95  # fields with a smaller keep probability
MAX_EXACT = 3


class Exact(Guided):
    """All subsets of a row's uncertain fields if these are few, random draws otherwise."""

    kind: Literal["exact"] = "exact"

    def draw(self, inputs: SamplerInput, max_paths: int) -> Paths:
        """Up to ``max_paths`` paths per row."""
        keep = self.keep_probability(inputs)
        most = max_paths
        uncertain = inputs.kept & (keep < UNCERTAIN)
        number = uncertain.sum(axis=1)
        exact = (number <= MAX_EXACT) & (2**number - 1 <= most)
        drawn = antithetic(keep, inputs, most)
        rows, n = keep.shape
        mask, weight = np.zeros((rows, most, n), bool), np.zeros((rows, most))
        confidence = np.ones((rows, most))
        width = drawn.weight.shape[1]
        mask[:, :width], weight[:, :width], confidence[:, :width] = drawn.mask, drawn.weight, drawn.confidence
        base_weight, used = drawn.base_weight.copy(), drawn.used.copy()
        for m in range(MAX_EXACT + 1):
            chosen = np.flatnonzero(exact & (number == m))
            if len(chosen) == 0:
                continue
            positions = np.nonzero(uncertain[chosen])[1].reshape(len(chosen), m)
            dropped = ((np.arange(2**m)[:, None] >> np.arange(m)[None]) & 1) == 1  # [2^m, m]; subset 0 is the base pass
            chance = np.take_along_axis(keep[chosen], positions, axis=1)[:, None]
            p = np.where(dropped[None], 1.0 - chance, chance).prod(axis=2)
            mask[chosen] = inputs.kept[chosen][:, None]
            weight[chosen] = 0.0
            for subset in range(1, 2**m):
                mask[chosen[:, None], subset - 1, positions] = ~dropped[subset]
            weight[chosen, : 2**m - 1] = p[:, 1:]
            base_weight[chosen], used[chosen] = p[:, 0], 2**m - 1
        return Paths(mask, weight, base_weight, used, confidence, drawn.base_confidence, exact)
