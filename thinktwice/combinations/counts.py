"""Counts of pairs and triples of values in training, and the support of a combination that follows from them.

Shapes: B rows, C columns of encoded ids, M combinations (pairs first, then triples), N model fields. A combination with an
unknown value (id 0) has count 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from thinktwice.combinations.sketch import Frequencies, FrequencySketch
from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_file
from thinktwice.mapped import map_tensors, tensor_names
from thinktwice.splitmix import mix

COMBINATIONS_FILE = "combinations.safetensors"
KAPPA = {2: 5.0, 3: 3.0}  # count at which a combination of that many values has support 0.5
_PARTS = {"cells": np.uint32, "keys": np.uint64, "counts": np.int64, "whole": np.bool_, "starts": np.uint32}
_TENSORS = {"pairs": np.int64, "triples": np.int64, "num_values": np.int64}

Combination = tuple[int, ...]


@dataclass(frozen=True)
class CombinationCounts:
    """Counts of ``pairs`` and ``triples`` of columns, one sketch per order (2, and 3 where triples are counted).

    ``relabel`` (column -> other value for each value) is used by the shuffled control only and is not saved.
    """

    pairs: tuple[tuple[int, int], ...]
    triples: tuple[tuple[int, int, int], ...]
    num_values: tuple[int, ...]
    orders: dict[int, Frequencies]
    relabel: tuple[np.ndarray, ...] | None = None

    @staticmethod
    def fit(
        chunks: Iterable[np.ndarray],
        pairs: tuple[tuple[int, int], ...],
        triples: tuple[tuple[int, int, int], ...],
        num_values: tuple[int, ...],
        *,
        capacity: int = 1 << 17,
        width: int = 1 << 20,
    ) -> CombinationCounts:
        """Count combinations of ids [n, C] in one pass over ``chunks`` of training rows."""
        sketches = {2: FrequencySketch.empty(capacity, width)}
        if triples:
            sketches[3] = FrequencySketch.empty(capacity, width)
        for ids in chunks:
            for columns in (*pairs, *triples):  # one at a time, so that memory is bounded by the chunk
                keys, known = _keys(ids, (columns,))
                sketches[len(columns)].add(keys[known])
        return CombinationCounts(pairs, triples, num_values, {o: s.finished() for o, s in sketches.items()})

    def lower_bound(self, ids: np.ndarray) -> np.ndarray:
        """Lower bound of the count of each combination, float64 [B, M]; it holds for at least 95 % of them."""
        if self.relabel is not None:
            ids = np.stack([table[ids[:, c]] for c, table in enumerate(self.relabel)], axis=1)
        parts = [self._of_order(ids, combinations) for combinations in (self.pairs, self.triples) if combinations]
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(ids), 0))

    def _of_order(self, ids: np.ndarray, combinations: tuple[Combination, ...]) -> np.ndarray:
        keys, known = _keys(ids, combinations)
        bound = self.orders[len(combinations[0])].lower(keys.reshape(-1)).reshape(keys.shape)
        return np.where(known, bound, 0).astype(np.float64)

    def reliability(self, ids: np.ndarray) -> np.ndarray:
        """Support c / (c + kappa) of every combination by the lower bound c of its count, float64 [B, M] in 0..1."""
        bound = self.lower_bound(ids)
        kappa = np.array([KAPPA[len(c)] for c in (*self.pairs, *self.triples)])
        return bound / (bound + kappa)

    def pair_matrix(self, ids: np.ndarray, num_fields: int) -> np.ndarray:
        """Support of every pair of fields, symmetric, float64 [B, N, N]; 1 on the diagonal and where pairs are not counted."""
        known = self.reliability(ids)
        out = np.ones((len(ids), num_fields, num_fields))
        for position, (i, j) in enumerate(self.pairs):
            out[:, i, j] = out[:, j, i] = known[:, position]
        return out

    def shuffled(self, seed: int = 0) -> CombinationCounts:
        """The shuffled control: every known value is looked up as another value of its column, which destroys any real gain."""
        rng = np.random.default_rng(seed)
        relabel = []
        for size in self.num_values:
            table = np.arange(size)
            table[1:] = rng.permutation(table[1:])
            relabel.append(table)
        return replace(self, relabel=tuple(relabel))

    def save(self, folder: Path | str) -> None:
        """Write ``combinations.safetensors`` into ``folder``."""
        tensors = {
            "pairs": np.array(self.pairs, np.int64).reshape(-1, 2),
            "triples": np.array(self.triples, np.int64).reshape(-1, 3),
            "num_values": np.array(self.num_values, np.int64),
        }
        for order, frequencies in self.orders.items():
            tensors |= {f"{order}.{name}": np.ascontiguousarray(getattr(frequencies, name)) for name in _PARTS}
            tensors[f"{order}.noise"] = np.array([frequencies.noise], np.int64)
        with atomic_file(Path(folder) / COMBINATIONS_FILE) as temporary:
            save_file(tensors, str(temporary))

    @staticmethod
    def load(folder: Path | str) -> CombinationCounts:
        """Memory-map what :meth:`save` wrote, read-only.

        Raises:
            BundleError: the file is missing or damaged.
        """
        path = Path(folder) / COMBINATIONS_FILE
        triples = "3.keys" in tensor_names(path)
        tensors = map_tensors(path, _TENSORS | _of_order(2) | (_of_order(3) if triples else {}))
        try:
            sizes = tensors["num_values"]
            if sizes.ndim != 1:
                raise ValueError("'num_values' is not a vector")
            combinations = [
                _combinations(tensors, name, order, len(sizes)) for name, order in (("pairs", 2), ("triples", 3))
            ]
            if (len(combinations[1]) > 0) != triples:
                raise ValueError("'triples' and their counts do not match")
            orders = {order: _mapped(tensors, order) for order in (2, 3)[: 1 + triples]}
        except ValueError as error:
            raise BundleError(
                f"combination counts {path} are damaged ({reason(error)}): fit the test-time parameters again"
            ) from error
        return CombinationCounts(
            tuple((a, b) for a, b in combinations[0]),
            tuple((a, b, c) for a, b, c in combinations[1]),
            tuple(int(n) for n in sizes),
            orders,
        )


def _of_order(order: int) -> dict[str, type[np.generic]]:
    return {f"{order}.{name}": kind for name, kind in _PARTS.items()} | {f"{order}.noise": np.int64}


def _combinations(tensors: dict[str, np.ndarray], name: str, order: int, columns: int) -> list[list[int]]:
    """Combinations of ``order`` different columns each, in ascending order."""
    indices = tensors[name]
    if indices.ndim != 2 or indices.shape[1] != order:
        raise ValueError(f"{name!r} does not name {order} columns each")
    if indices.size and not (
        (indices[:, 0] >= 0).all() and (indices[:, -1] < columns).all() and (np.diff(indices) > 0).all()
    ):
        raise ValueError(f"{name!r} does not name different columns of the model in their order")
    return [[int(column) for column in row] for row in indices]


def _mapped(tensors: dict[str, np.ndarray], order: int) -> Frequencies:
    cells, keys, counts, whole, starts = (tensors[f"{order}.{name}"] for name in _PARTS)
    noise = tensors[f"{order}.noise"]
    if noise.shape != (1,) or noise[0] < 0:
        raise ValueError(f"'{order}.noise' is not one number of at least 0")
    return Frequencies(cells, keys, counts, whole, starts, int(noise[0])).checked()


def maskable_pairs(maskable_fields: np.ndarray, limit: int = 64) -> tuple[tuple[int, int], ...]:
    """All pairs of the unprotected columns ``maskable_fields`` [n], the first ``limit`` in their order."""
    return tuple(_first(itertools.combinations((int(f) for f in maskable_fields), 2), limit))  # type: ignore[arg-type]


def _first(values: Iterator[Combination], limit: int) -> list[Combination]:
    return [value for value, _ in zip(values, range(limit), strict=False)]


def _keys(ids: np.ndarray, combinations: tuple[Combination, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mixed 64-bit keys [B, M] of combinations of one order, and whether all values of each are known [B, M]."""
    columns = np.array(combinations).T  # [order, M]
    values = [ids[:, c].astype(np.uint64) for c in columns]
    least = values[0]
    for value in values[1:]:
        least = np.minimum(least, value)
    key = (values[0] << np.uint64(32)) | values[1]
    for value in values[2:]:
        key = mix(key) ^ value
    return mix(key ^ _salts(combinations)[None]), least > 0


@cache
def _salts(combinations: tuple[Combination, ...]) -> np.ndarray:
    """One 64-bit number per combination of columns [M]."""
    codes = []
    for columns in combinations:
        code = 0
        for c in (len(columns), *columns):
            code = (code * 1_000_003 + c + 1) % 2**64
        codes.append(code)
    return mix(np.array(codes, np.uint64))
