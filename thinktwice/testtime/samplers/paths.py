"""Input and output of a sampler. Shapes: U uncertain rows, n unprotected fields, K the largest number of paths of a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BASE_DRAWS = 2.0  # the base pass counts as two drawn paths


@dataclass(frozen=True)
class SamplerInput:
    """Support of the unprotected fields of U uncertain rows.

    kept [U, n] bool fields that the base pass keeps (a path never restores a filtered field), r [U, n] support of the values,
    pairs [U, n, n] support of value pairs and triples [U, n, n, n] of value triples (None: triples are not counted, NaN: this
    triple is not), wanted [U] even numbers of paths up to K, row_hash [U] uint64, the source of all draws.
    """

    kept: np.ndarray
    r: np.ndarray
    pairs: np.ndarray | None
    triples: np.ndarray | None
    wanted: np.ndarray
    row_hash: np.ndarray


@dataclass(frozen=True)
class Paths:
    """The distinct paths of U rows. Path k of row u is real if k < used[u]; the others are padding to a width that depends on
    the settings only, so that sums over K give the same bits whatever the other rows are.

    mask [U, K, n] bool, weight [U, K] (times a path was drawn, or its probability), base_weight [U] (the same for the base
    pass, which is already computed), used [U], confidence [U, K] and base_confidence [U] of the combinations a path was
    grown along (1 where the sampler knows none), exact [U] bool where the paths are exhaustive, not a sample.
    """

    mask: np.ndarray
    weight: np.ndarray
    base_weight: np.ndarray
    used: np.ndarray
    confidence: np.ndarray
    base_confidence: np.ndarray
    exact: np.ndarray

    def rows(self, chosen: np.ndarray) -> Paths:
        """The paths of the chosen rows."""
        return Paths(
            self.mask[chosen],
            self.weight[chosen],
            self.base_weight[chosen],
            self.used[chosen],
            self.confidence[chosen],
            self.base_confidence[chosen],
            self.exact[chosen],
        )


def distinct(
    mask: np.ndarray,
    kept: np.ndarray,
    wanted: np.ndarray,
    *,
    base_draws: float = BASE_DRAWS,
    confidence: np.ndarray | None = None,
) -> Paths:
    """Drawn masks [U, K, n] without duplicates: the weight is the number of duplicates; masks equal to the base pass add to its
    weight.

    Confidences [U, K] of equal paths are averaged.
    """
    rows, most, _ = mask.shape
    draw = np.arange(most)
    drawn = draw[None] < wanted[:, None]
    same = np.ones((rows, most, most), bool)
    is_base = drawn.copy()
    for word, base in zip(_words(mask), _words(kept), strict=True):  # equal words mean equal paths
        same &= word[:, :, None] == word[:, None]
        is_base &= word == base[:, None]
    same &= drawn[:, None]  # [U, K, K]
    real = (same.argmax(axis=2) == draw) & drawn & ~is_base
    times = same.sum(axis=2)
    weight = np.where(real, times, 0.0)
    hits = is_base.sum(axis=1)
    order = np.argsort(~real, axis=1, kind="stable")  # real paths first, in the order of drawing
    row = np.arange(rows)[:, None]
    path_confidence, base_confidence = np.ones((rows, most)), np.ones(rows)
    if confidence is not None:
        mean = np.where(real, (same * confidence[:, None]).sum(axis=2) / np.maximum(times, 1), 1.0)
        path_confidence = mean[row, order]
        base_confidence = np.where(hits > 0, (is_base * confidence).sum(axis=1) / np.maximum(hits, 1), 1.0)
    return Paths(
        mask[row, order],
        weight[row, order],
        base_draws + hits,
        real.sum(axis=1),
        path_confidence,
        base_confidence,
        np.zeros(rows, bool),
    )


def _words(mask: np.ndarray) -> list[np.ndarray]:
    """The bits of mask [..., n] packed into integers of up to 62 bits, each [...]."""
    parts = range(0, mask.shape[-1], 62)
    return [mask[..., p : p + 62] @ (1 << np.arange(min(62, mask.shape[-1] - p), dtype=np.int64)) for p in parts]
