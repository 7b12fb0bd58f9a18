"""Feature paths of unsure rows: which fields each extra pass of a row keeps.

Shapes: U unsure rows, N fields, K the largest number of paths of any row. Both samplers start from the row's filtered
base mask and from the keep probability of every field; both drop repeated paths and keep their weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thinktwice.testtime.config import SamplerKind
from thinktwice.testtime.rowhash import uniforms

KEEP_MIN = 0.2  # a path keeps a field with probability sqrt(reliability), and never with less than this
DOUBTFUL = 0.95  # fields with a smaller keep probability
MAX_EXACT = (
    3  # doubtful fields that are enumerated instead of sampled, as far as their subsets fit into the paths of a row
)
BASE_DRAWS = 2.0  # the base pass counts twice beside drawn paths


@dataclass(frozen=True)
class Paths:
    """The different paths of U rows. Path k of row u is real when k < used[u]; the rest is padding up to a width that
    depends on the settings alone, so that sums over K give the same bits whatever the other rows are.

    mask [U, K, N] bool, weight [U, K] (times a path was drawn, or its probability), base_weight [U] (the same for the
    base mask, which costs nothing), used [U].
    """

    mask: np.ndarray
    weight: np.ndarray
    base_weight: np.ndarray
    used: np.ndarray


def draw(
    kind: SamplerKind, base: np.ndarray, r: np.ndarray, wanted: np.ndarray, row_hash: np.ndarray, most: int
) -> Paths:
    """Paths of U unsure rows.

    Args:
        kind: `bernoulli` (guided random masks) or `enumerate` (all subsets where at most three fields are doubtful and the subsets are at most ``most``).
        base: [U, N] bool, fields that the base pass keeps; a path never brings back a filtered one.
        r: [U, N] reliability.
        wanted: [U] even numbers of paths, at most ``most``.
        row_hash: [U] uint64, the source of the draws.
        most: largest number of paths of any row.
    """
    keep = np.maximum(np.sqrt(r), KEEP_MIN)
    paths = bernoulli(base, keep, wanted, row_hash, most)
    return enumerated(paths, base, keep, wanted, most) if kind == "enumerate" else paths


def bernoulli(base: np.ndarray, keep: np.ndarray, wanted: np.ndarray, row_hash: np.ndarray, most: int) -> Paths:
    """Random paths in antithetic pairs, repeated ones merged; ``keep`` [U, N] is the probability of keeping a field."""
    rows, fields = base.shape
    pairs = most // 2
    u = uniforms(row_hash, pairs * fields).reshape(rows, pairs, 1, fields)
    both = np.concatenate([u, 1.0 - u], axis=2).reshape(rows, 2 * pairs, fields)
    mask = ((both < keep[:, None]) | (keep[:, None] >= 1)) & base[:, None]
    drawn = (np.arange(2 * pairs)[None] < wanted[:, None]).astype(np.float64)

    packed = np.packbits(mask, axis=2)  # equal bytes = equal path
    same = (packed[:, :, None] == packed[:, None]).all(axis=3) & (drawn[:, None] > 0)  # [U, K, K]
    first = same.argmax(axis=2)
    is_base = (mask == base[:, None]).all(axis=2)
    real = (first == np.arange(2 * pairs)[None]) & ~is_base & (drawn > 0)
    weight = np.where(real, same.sum(axis=2), 0.0)
    order = np.argsort(~real, axis=1, kind="stable")  # real paths to the front, in the order they were drawn
    return Paths(
        np.take_along_axis(mask, order[:, :, None], axis=1),
        np.take_along_axis(weight, order, axis=1),
        BASE_DRAWS + (is_base * drawn).sum(axis=1),
        real.sum(axis=1),
    )


def enumerated(drawn: Paths, base: np.ndarray, keep: np.ndarray, wanted: np.ndarray, most: int) -> Paths:
    """``drawn`` with the rows of few doubtful fields replaced by all subsets of these and their probabilities.

    Few means at most three, and no more subsets than a row may have paths: the limit holds for either sampler.
    """
    doubtful = base & (keep < DOUBTFUL)
    number = doubtful.sum(axis=1)
    exact = np.flatnonzero((number <= MAX_EXACT) & (2**number - 1 <= most))
    mask, weight = np.zeros((len(base), most, base.shape[1]), bool), np.zeros((len(base), most))
    width = drawn.weight.shape[1]
    mask[:, :width], weight[:, :width] = drawn.mask, drawn.weight
    base_weight, used = drawn.base_weight.copy(), drawn.used.copy()
    for row in exact:
        places = np.flatnonzero(doubtful[row])
        count = 2 ** len(places)
        dropped = ((np.arange(count)[:, None] >> np.arange(len(places))[None]) & 1) == 1  # subset 0 is the base mask
        p = np.where(dropped, 1.0 - keep[row, places], keep[row, places]).prod(axis=1) * wanted[row]
        mask[row], weight[row] = base[row], 0.0
        mask[row, : count - 1, places] = ~dropped[1:].T
        weight[row, : count - 1], base_weight[row], used[row] = p[1:], p[0], count - 1
    return Paths(mask, weight, base_weight, used)
