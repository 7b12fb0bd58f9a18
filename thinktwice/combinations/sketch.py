"""Counts of 64-bit keys in bounded memory: exact for the frequent ones, an upper and a lower bound for the rest.

Hierarchical probabilistic hashing as MATT-CTR describes it (arXiv 2510.08932): frequent keys are stored separately, rare
ones share the cells of a count-min sketch. Differences from the paper: the frequent keys are in a sorted array instead of a
min-heap, so that millions of keys are added by array operations; the sketch has no conservative updates, so that two
sketches can be added; and the noise of the cells is measured with keys that were never added instead of a Poisson tail,
which is far too wide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from thinktwice.splitmix import mix

CHUNK = 1 << 20  # keys added in one step
GHOSTS = 100_000
CONFIDENCE = 0.95  # share of keys whose lower bound is correct
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)  # odd; one per row of cells
DEPTH = len(_MULTIPLIERS)


@dataclass
class FrequencySketch:
    """A sketch under construction.

    Attributes:
        cells: [DEPTH, W] uint32, W a power of two; counts of the keys that are not stored separately.
        keys: [H] uint64, ascending; the keys that are stored separately.
        counts: [H] int64, how often each was added while it was stored separately.
        whole: [H] bool, whether ``counts`` is the whole count: the cells contain nothing of the key.
        capacity: maximum number of keys stored separately.
    """

    cells: np.ndarray
    keys: np.ndarray
    counts: np.ndarray
    whole: np.ndarray
    capacity: int

    @staticmethod
    def empty(capacity: int = 1 << 17, width: int = 1 << 20) -> FrequencySketch:
        """A sketch without keys.

        Raises:
            ValueError: the width is not a power of two of at least 2.
        """
        if width < 2 or width & (width - 1):
            raise ValueError(f"width must be a power of two of at least 2, not {width}")
        return FrequencySketch(
            np.zeros((DEPTH, width), np.uint32),
            np.zeros(0, np.uint64),
            np.zeros(0, np.int64),
            np.zeros(0, bool),
            capacity,
        )

    @property
    def spilled(self) -> bool:
        """Whether any key was ever moved to the cells."""
        return bool(self.cells[0].any())

    def add(self, keys: np.ndarray) -> None:
        """Count mixed keys [n] uint64, each as often as it occurs."""
        for start in range(0, len(keys), CHUNK):
            self._add(*np.unique(keys[start : start + CHUNK], return_counts=True))

    def _add(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Count distinct ascending keys [n]."""
        position = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        known = self.keys[position] == keys if len(self.keys) else np.zeros(len(keys), bool)
        self.counts[position[known]] += counts[known]
        keys, counts = keys[~known], counts[~known]
        if len(keys) == 0:
            return
        light = light_estimate(self.cells, keys) if self.spilled else np.zeros(len(keys), np.int64)
        whole = light == 0  # an estimate is never too low, so the cells contain nothing of these keys
        free = self.capacity - len(self.keys)
        if len(keys) <= free:
            self._keep(keys, counts, whole)
            return
        estimate = counts + light
        order = np.argsort(-estimate, kind="stable")
        smallest = np.argsort(self.counts, kind="stable")
        bids = order[free : free + len(smallest)]
        wins = estimate[bids] > self.counts[smallest[: len(bids)]]
        number = len(wins) if wins.all() else int(wins.argmin())  # both are ordered, winners first
        evicted = smallest[:number]
        self._spill(self.keys[evicted], self.counts[evicted])
        stays = np.ones(len(self.keys), bool)
        stays[evicted] = False
        self.keys, self.counts, self.whole = self.keys[stays], self.counts[stays], self.whole[stays]
        kept = order[: free + number]
        self._keep(keys[kept], counts[kept], whole[kept])
        spilled = order[free + number :]
        self._spill(keys[spilled], counts[spilled])

    def _keep(self, keys: np.ndarray, counts: np.ndarray, whole: np.ndarray) -> None:
        all_keys = np.concatenate([self.keys, keys])
        order = np.argsort(all_keys, kind="stable")
        self.keys = all_keys[order]
        self.counts = np.concatenate([self.counts, counts.astype(np.int64)])[order]
        self.whole = np.concatenate([self.whole, whole])[order]

    def _spill(self, keys: np.ndarray, counts: np.ndarray) -> None:
        added = counts.astype(np.uint32)
        for row in range(DEPTH):
            np.add.at(self.cells[row], _cell(keys, row, self.cells.shape[1]), added)

    def merged(self, other: FrequencySketch) -> FrequencySketch:
        """The sketch of both inputs: cells add, counts of common keys add; keys beyond the capacity, those with the
        smallest counts, move to the cells.

        Raises:
            ValueError: the sketches have different sizes.
        """
        if self.cells.shape != other.cells.shape or self.capacity != other.capacity:
            raise ValueError(
                f"sketches of {self.cells.shape[1]} cells, {self.capacity} keys and {other.cells.shape[1]} cells, "
                f"{other.capacity} keys cannot be merged: build them with equal sizes"
            )
        keys, position = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, position, np.concatenate([self.counts, other.counts]))
        whole = np.ones(len(keys), bool)
        for part in (self, other):
            exact = np.isin(keys, part.keys, assume_unique=True)
            whole[exact] &= part.whole[np.searchsorted(part.keys, keys[exact])]
            # Otherwise the cells of this part may contain it.
            whole[~exact] &= light_estimate(part.cells, keys[~exact]) == 0
        out = FrequencySketch(self.cells + other.cells, keys, counts, whole, self.capacity)
        over = len(keys) - self.capacity
        if over > 0:
            order = np.argsort(counts, kind="stable")
            out._spill(keys[order[:over]], counts[order[:over]])
            stays = np.sort(order[over:])
            out.keys, out.counts, out.whole = keys[stays], counts[stays], whole[stays]
        return out

    def finished(self) -> Frequencies:
        """The counts, ready for lookups."""
        return Frequencies.of(self.cells, self.keys, self.counts, self.whole)


@dataclass(frozen=True)
class Frequencies:
    """Counts ready for lookups, as stored in a file: the arrays of the sketch, ``starts`` of the keys by their leading
    bits, and ``noise``, which the cells of one in twenty never-added keys exceed."""

    cells: np.ndarray
    keys: np.ndarray
    counts: np.ndarray
    whole: np.ndarray
    starts: np.ndarray
    noise: int

    @staticmethod
    def of(cells: np.ndarray, keys: np.ndarray, counts: np.ndarray, whole: np.ndarray) -> Frequencies:
        """Measure the noise of ``cells`` with keys that were never added, and index ``keys``."""
        ghosts = mix(mix(np.arange(1, GHOSTS + 1, dtype=np.uint64)) ^ np.uint64(0x5851F42D4C957F2D))
        noise = int(np.quantile(light_estimate(cells, ghosts), CONFIDENCE, method="higher"))
        return Frequencies(cells, keys, counts, whole, _starts(keys), noise)

    def checked(self) -> Frequencies:
        """Return itself after checking the arrays of a file: lookups then stay within them and terminate.

        Raises:
            ValueError: the arrays cannot come from :meth:`of`.
        """
        width = self.cells.shape[1] if self.cells.ndim == 2 else 0
        if len(self.cells) != DEPTH or width < 2 or width & (width - 1):
            raise ValueError(f"'cells' has the shape {self.cells.shape}")
        if any(part.ndim != 1 for part in (self.keys, self.counts, self.whole, self.starts)):
            raise ValueError("a tensor is not a vector")
        if not len(self.keys) == len(self.counts) == len(self.whole):
            raise ValueError("'keys', 'counts' and 'whole' have different lengths")
        if len(self.keys) and (not (self.keys[1:] > self.keys[:-1]).all() or self.counts.min() < 0):
            raise ValueError("'keys' are not ascending, or a count is below 0")
        if not np.array_equal(self.starts, _starts(self.keys)):
            raise ValueError("'starts' is not the index of 'keys'")
        return self

    def upper(self, keys: np.ndarray) -> np.ndarray:
        """Upper bound of the count of each of the mixed keys [n], int64."""
        apart, light = self._parts(keys)
        return apart + light

    def lower(self, keys: np.ndarray) -> np.ndarray:
        """Lower bound of the count of each key, int64 [n], never negative; it holds for at least 95 % of keys."""
        apart, light = self._parts(keys)
        return apart + np.maximum(light - self.noise, 0)

    def _parts(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        position = self._positions(keys)
        known = position >= 0
        apart = (
            np.where(known, self.counts[np.maximum(position, 0)], 0)
            if len(self.keys)
            else np.zeros(len(keys), np.int64)
        )
        light = np.zeros(len(keys), np.int64)
        hazy = (
            np.flatnonzero(~(known & self.whole[np.maximum(position, 0)])) if len(self.keys) else np.arange(len(keys))
        )
        light[hazy] = light_estimate(self.cells, keys[hazy])
        return apart, light

    def _positions(self, keys: np.ndarray) -> np.ndarray:
        """Position of each key among those stored separately, -1 for the others."""
        bits = (len(self.starts) - 1).bit_length() - 1
        bucket = (keys >> np.uint64(64 - bits)).astype(np.int64)
        at, end = self.starts[bucket].astype(np.int64), self.starts[bucket + 1].astype(np.int64)
        out = np.full(len(keys), -1, np.int64)
        open_ = np.flatnonzero(at < end)
        while len(open_):
            slot = at[open_]
            hit = self.keys[slot] == keys[open_]
            out[open_[hit]] = slot[hit]
            at[open_] += 1
            open_ = open_[~hit]
            open_ = open_[at[open_] < end[open_]]
        return out


def _starts(keys: np.ndarray) -> np.ndarray:
    """First position of the keys of each value of the leading bits, and the end; uint32."""
    bits = max(1, int(np.ceil(np.log2(max(len(keys), 1)))) + 2)
    edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.append(np.searchsorted(keys, edges), len(keys)).astype(np.uint32)


def light_estimate(cells: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The smallest of the cells of each key [n], int64: its count plus noise from other keys."""
    least = cells[0].take(_cell(keys, 0, cells.shape[1]))
    for row in range(1, DEPTH):
        np.minimum(least, cells[row].take(_cell(keys, row, cells.shape[1])), out=least)
    return least.astype(np.int64)


def sketch_of(chunks: Iterable[np.ndarray], capacity: int, width: int) -> FrequencySketch:
    """The sketch of all keys of ``chunks``."""
    sketch = FrequencySketch.empty(capacity, width)
    for keys in chunks:
        sketch.add(keys)
    return sketch


def _cell(keys: np.ndarray, row: int, width: int) -> np.ndarray:
    shift = np.uint64(64 - (width.bit_length() - 1))
    return ((keys * _MULTIPLIERS[row]) >> shift).astype(np.int64)
