"""Reliability of every value from its training count: one byte per row of the joint embedding table.

Shapes: C categorical-or-numeric columns, N model fields (the C columns first, then sequences and vectors, which are
protected), B rows. Counts are of the training rows only and belong to the weights trained on them: newer counts would call an
untrained vector reliable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from thinktwice.data.encoded import count_values, table_offsets
from thinktwice.errors import BundleError
from thinktwice.files import atomic_file
from thinktwice.mapped import map_tensors
from thinktwice.models.fields import FieldSpace

COUNTS_FILE = "counts.safetensors"
KAPPA_BOUNDS = (1.0, 200.0)
MAX_KAPPA = 1e6  # accepted in a file; fitted values stay within KAPPA_BOUNDS
_TENSORS: dict[str, type[np.generic]] = {
    "counts": np.uint8,
    "kappa": np.float64,
    "num_values": np.int64,
    "protected": np.uint8,
}


def quantise(counts: np.ndarray) -> np.ndarray:
    """One byte per count, q = round(16 log2(1 + c)): exact up to 22, within 3.5 % above, saturating near 63,000."""
    return np.minimum(np.round(16 * np.log2(1.0 + counts.astype(np.float64))), 255).astype(np.uint8)


def _decoded() -> np.ndarray:
    count = np.exp2(np.arange(256) / 16) - 1
    whole = np.round(count)
    return np.where(quantise(whole) == np.arange(256), whole, count)


#: The count that each byte represents.
DECODED = _decoded()


@dataclass(frozen=True)
class Reliability:
    """Counts and shrinkage of one model.

    Attributes:
        counts: [rows of the joint table] uint8, quantised; 0 at the unknown value of every column.
        kappa: [N] float64, the count at which a value of the field is half reliable.
        num_values: values per column, the unknown one included.
        protected: [N] bool, fields whose values are always taken as reliable.
    """

    counts: np.ndarray
    kappa: np.ndarray
    num_values: tuple[int, ...]
    protected: np.ndarray

    @staticmethod
    def fit(
        ids: np.ndarray, label: np.ndarray, fields: FieldSpace, protected: Sequence[bool] | None = None
    ) -> Reliability:
        """Count the training rows (ids [R, C], label [R]) and fit kappa per field by moments.

        ``protected`` [N]: fields that the model lets no method mask; None: those of the schema.
        """
        kappa = np.full(fields.num_fields, KAPPA_BOUNDS[1])
        for column, size in enumerate(fields.num_values):
            kappa[column] = moment_kappa(ids[:, column], label, size)
        counts = quantise(count_values(ids, fields.num_values))
        return Reliability(
            counts, kappa, fields.num_values, np.asarray(fields.protected if protected is None else protected, bool)
        )

    @cached_property
    def offsets(self) -> np.ndarray:
        """First row of each column in the joint table, [C]."""
        return table_offsets(self.num_values)

    @cached_property
    def maskable_fields(self) -> np.ndarray:
        """Indices of the unprotected fields (all of them are columns)."""
        return np.flatnonzero(~self.protected[: len(self.num_values)])

    @cached_property
    def _table(self) -> np.ndarray:
        return self._mixing_table(1.0)

    def _mixing_table(
        self, strength: float, factors: tuple[float, ...] = (), shares: tuple[float, ...] = ()
    ) -> np.ndarray:
        """share * c / (c + strength * factor * kappa) of every column and byte, [C, 256]; 1 where the field is protected."""
        columns = len(self.num_values)
        count = DECODED[None]
        pull = strength * self.kappa[:columns, None]
        if factors:
            pull = pull * np.asarray(factors)[:columns, None]
        share = np.divide(count, count + pull, out=np.ones((columns, 256)), where=count + pull > 0)
        if shares:
            share = share * np.asarray(shares)[:columns, None]
        share[self.protected[:columns]] = 1.0
        return share

    def bytes_of(self, ids: np.ndarray) -> np.ndarray:
        """Quantised counts of the values in ids [B, C], uint8 [B, C]."""
        return self.counts[ids + self.offsets]

    def counts_of(self, ids: np.ndarray) -> np.ndarray:
        """Training counts of the values in ids [B, C], float64 [B, C], to the precision of one byte."""
        return DECODED[self.bytes_of(ids)]

    def of(self, ids: np.ndarray, strength: float = 1.0) -> np.ndarray:
        """r = c / (c + strength * kappa) of every field, float64 [B, N] in 0..1; protected fields give 1."""
        table = self._table if strength == 1.0 else self._mixing_table(strength)
        out = np.ones((len(ids), len(self.kappa)))
        columns = len(self.num_values)
        out[:, :columns] = table[np.arange(columns), self.bytes_of(ids)]
        return out

    def of_table(self, strength: float, factors: tuple[float, ...] = (), shares: tuple[float, ...] = ()) -> np.ndarray:
        """Weight of every row of the joint table under a gate, float32 [sum(num_values)]: like :meth:`of`, with ``factors`` [N]
        of each field's strength and ``shares`` [N] that multiply a field's weights whatever its counts."""
        column = np.repeat(np.arange(len(self.num_values)), self.num_values)
        return self._mixing_table(strength, factors, shares)[column, self.counts].astype(np.float32)

    def resized(self, num_fields: int) -> Reliability:
        """The same counts for a model with another number of fields after the columns, which are protected."""
        more = num_fields - len(self.kappa)
        if more == 0 or num_fields < len(self.num_values):
            return self  # the second: counts of another model, which the engine refuses
        kappa = np.concatenate([self.kappa, np.full(max(more, 0), KAPPA_BOUNDS[1])])[:num_fields]
        protected = np.concatenate([self.protected, np.ones(max(more, 0), bool)])[:num_fields]
        return Reliability(self.counts, kappa, self.num_values, protected)

    def shuffled(self, seed: int = 0) -> Reliability:
        """A control: the counts of a field's known values randomly permuted. A real gain disappears under it."""
        rng = np.random.default_rng(seed)
        counts = self.counts.copy()
        for start, size in zip(self.offsets, self.num_values, strict=True):
            counts[start + 1 : start + size] = rng.permutation(counts[start + 1 : start + size])
        return Reliability(counts, self.kappa, self.num_values, self.protected)

    def save(self, folder: Path | str) -> None:
        """Write ``counts.safetensors`` into ``folder``."""
        tensors = {
            "counts": self.counts,
            "kappa": self.kappa,
            "num_values": np.asarray(self.num_values, np.int64),
            "protected": self.protected.astype(np.uint8),
        }
        with atomic_file(Path(folder) / COUNTS_FILE) as temporary:
            save_file(tensors, str(temporary))

    @staticmethod
    def load(folder: Path | str) -> Reliability:
        """Map what :meth:`save` wrote: the counts stay on disk until read, and workers share them.

        Raises:
            BundleError: the file is missing or damaged.
        """
        path = Path(folder) / COUNTS_FILE
        tensors = map_tensors(path, _TENSORS)
        counts, kappa, sizes, protected = (tensors[name] for name in _TENSORS)
        problem = ""
        if any(part.ndim != 1 for part in tensors.values()):
            problem = "a tensor is not a vector"
        elif not (len(sizes) and (sizes > 0).all() and sizes.sum(dtype=np.float64) == len(counts)):
            problem = "'counts' and 'num_values' describe different numbers of values"
        elif len(kappa) != len(protected) or len(kappa) < len(sizes):
            problem = "'kappa' and 'protected' describe different numbers of fields"
        elif not (np.isfinite(kappa) & (kappa > 0) & (kappa <= MAX_KAPPA)).all():
            problem = f"'kappa' contains numbers that are not within 0 and {MAX_KAPPA:,.0f}"
        elif not ((protected <= 1).all() and protected[len(sizes) :].all()):
            problem = "'protected' contains other values than 0 and 1, or leaves a sequence or vector open"
        if problem:
            raise BundleError(f"counts {path} are damaged ({problem}): fit the test-time parameters again")
        return Reliability(counts, np.array(kappa), tuple(int(n) for n in sizes), protected.astype(bool))


def moment_kappa(ids: np.ndarray, label: np.ndarray, num_values: int) -> float:
    """Shrinkage of one field from the spread of the click rates of its values, within ``KAPPA_BOUNDS``.

    A value's rate is drawn from Beta(kappa p, kappa (1 - p)); the variance between values beyond what the binomial noise
    of their counts explains gives kappa = p (1 - p) / variance - 1. Without variance between values, an unknown value costs
    nothing.
    """
    known = ids > 0
    counts = np.bincount(ids[known], minlength=num_values).astype(np.float64)
    clicks = np.bincount(ids[known], weights=label[known], minlength=num_values)
    clicks, counts = clicks[counts > 0], counts[counts > 0]
    total, values = counts.sum(), len(counts)
    if values < 2 or total <= values:
        return KAPPA_BOUNDS[1]
    p = clicks.sum() / total
    spread = float(np.sum(counts * (clicks / counts - p) ** 2))
    weight = total - float(np.sum(counts**2)) / total - (values - 1)
    if weight <= 0:
        return KAPPA_BOUNDS[1]
    between = (spread - (values - 1) * p * (1 - p)) / weight
    if between <= 0:
        return KAPPA_BOUNDS[1]
    return float(np.clip(p * (1 - p) / between - 1, *KAPPA_BOUNDS))
