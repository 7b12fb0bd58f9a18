"""Paths grown along frequent combinations (MATT-CTR, arXiv 2510.08932; reconstruction from its abstract).

Each path starts with one field, drawn by the support of its value. Then fields are drawn one after the other by g, the support
of their combination with the last two fields taken (pairs, and triples if they are counted), and a drawn field is taken with
probability g / typical g, otherwise rejected for good. The weight of a path is the geometric mean of the g of its fields, or
the support of its first field if it has no other.
Protected fields are always kept. Unlike in the paper, the lower bound of a count comes from ghost keys instead of a Poisson
tail, and draws are seeded by the row's content, so that a row has the same paths everywhere.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from thinktwice.testtime.options import Options
from thinktwice.testtime.rowhash import uniforms
from thinktwice.testtime.samplers.paths import Paths, SamplerInput, distinct

FLOOR = 1e-6  # support of a combination that never occurred: possible, almost never taken


class Matt(Options):
    """Draws along the support of combinations."""

    kind: Literal["matt"] = "matt"
    typical_pair: float = Field(default=1.0, gt=0, le=1)  # support from which a combination is always taken

    def draw(self, inputs: SamplerInput, max_paths: int) -> Paths:
        """Up to ``max_paths`` paths per row."""
        rows, n = inputs.kept.shape
        most = max_paths
        if n == 0:
            return distinct(np.zeros((rows, most, 0), bool), inputs.kept, inputs.wanted, base_draws=0.0)
        pairs = np.ones((rows, n, n)) if inputs.pairs is None else inputs.pairs
        u = uniforms(inputs.row_hash, most * 2 * n).reshape(rows, most, 2 * n)
        row, path = np.arange(rows)[:, None], np.arange(most)[None]
        mask = np.zeros((rows, most, n), bool)
        remaining = np.repeat(inputs.kept[:, None], most, axis=1)
        log_g, num_taken = np.zeros((rows, most)), np.zeros((rows, most))
        last = _pick(np.where(remaining, inputs.r[:, None] + FLOOR, 0.0), u[:, :, 0])
        before = first = last
        any_kept = remaining.any(axis=2)
        mask[row, path, last] = any_kept
        remaining[row, path, last] = False
        for step in range(1, n):
            g = 0.5 * (pairs[row, last] + pairs[row, before])  # [U, K, n]
            if inputs.triples is not None:
                three = inputs.triples[row, last, before]
                g = np.where(np.isnan(three), g, 0.5 * (g + three))
            g = np.maximum(g, FLOOR)
            j = _pick(np.where(remaining, g, 0.0), u[:, :, 2 * step])
            support = np.take_along_axis(g, j[:, :, None], axis=2)[:, :, 0]
            open_ = np.take_along_axis(remaining, j[:, :, None], axis=2)[:, :, 0]
            accept = open_ & (u[:, :, 2 * step + 1] * self.typical_pair < support)
            remaining[row, path, j] = False
            mask[row, path, j] |= accept
            log_g += np.where(accept, np.log(support), 0.0)
            num_taken += accept
            before, last = np.where(accept, last, before), np.where(accept, j, last)
        confidence = np.where(num_taken > 0, np.exp(log_g / np.maximum(num_taken, 1)), inputs.r[row, first])
        return distinct(mask, inputs.kept, inputs.wanted, base_draws=0.0, confidence=confidence)


def _pick(weight: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Index [U, K] drawn with probability proportional to weight [U, K, n]; any index if all weights are 0."""
    reach = np.cumsum(weight, axis=2)
    return np.minimum((reach <= u[:, :, None] * reach[:, :, -1:]).sum(axis=2), weight.shape[2] - 1)
