"""Sufficient statistics of sums per unit, mergeable.

Two levels, because a unit's rows are not independent evidence:

* :class:`UnitSums`: K sums (clicks, impressions, ...) of every unit. Days, hours and parts of a log add **by unit**.
* :class:`Moments`: number of units, means and centred cross products of these sums. Shards of **disjoint units** add.

Every estimate of this package is computed from :class:`Moments`, so an analysis of any size needs only K + K² numbers per arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class UnitSums:
    """Sums of every unit.

    Attributes:
        names: the K sums.
        unit: keys [N], ascending, each once.
        values: float64 [N, K].
    """

    names: tuple[str, ...]
    unit: np.ndarray
    values: np.ndarray

    @classmethod
    def of_rows(cls, names: Sequence[str], unit: np.ndarray, values: np.ndarray) -> UnitSums:
        """Sum rows [R, K] by their unit [R] (integers or strings)."""
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or values.shape != (len(unit), len(names)):
            raise ValueError(f"values must be [{len(unit)}, {len(names)}] (rows, names), not {list(values.shape)}")
        keys, position = np.unique(unit, return_inverse=True)
        sums = np.empty((len(keys), len(names)))
        for k in range(len(names)):
            sums[:, k] = np.bincount(position, weights=values[:, k], minlength=len(keys))
        return cls(tuple(names), keys, sums)

    def __add__(self, other: UnitSums) -> UnitSums:
        """Add by unit; a unit missing on one side counts as zeros."""
        _check_same_names(self.names, other.names)
        unit = np.concatenate([self.unit, other.unit])
        return UnitSums.of_rows(self.names, unit, np.concatenate([self.values, other.values]))

    def moments(self) -> Moments:
        return Moments.of(self.names, self.values)


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of K sums over units. An empty one is the zero of ``+``.

    Attributes:
        names: the K sums.
        num_units: number of units.
        mean: means [K] over units.
        scatter: centred cross products [K, K], Σ (x - mean)(x - mean)ᵀ.
    """

    names: tuple[str, ...]
    num_units: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str], values: np.ndarray) -> Moments:
        """Moments of values [N, K], one row per unit."""
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or values.shape[1] != len(names):
            raise ValueError(f"values must be [units, {len(names)}], not {list(values.shape)}")
        if len(values) == 0:
            return cls.empty(names)
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(tuple(names), len(values), mean, centred.T @ centred)

    @classmethod
    def empty(cls, names: Sequence[str]) -> Moments:
        k = len(names)
        return cls(tuple(names), 0, np.zeros(k), np.zeros((k, k)))

    def __add__(self, other: Moments) -> Moments:
        """Moments of the union of two disjoint sets of units (Chan, Golub and LeVeque 1983: no cancellation)."""
        _check_same_names(self.names, other.names)
        if not self.num_units or not other.num_units:
            return other if not self.num_units else self
        n = self.num_units + other.num_units
        step = other.mean - self.mean
        mean = self.mean + step * (other.num_units / n)
        between = np.outer(step, step) * (self.num_units * other.num_units / n)
        return Moments(self.names, n, mean, self.scatter + other.scatter + between)

    def column(self, name: str) -> int:
        """Index of a sum.

        Raises:
            ValueError: the sum does not exist.
        """
        if name not in self.names:
            raise ValueError(f"no sum {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    def covariance(self) -> np.ndarray:
        """Sample covariance [K, K] of the sums between units; nan with fewer than two units."""
        if self.num_units < 2:
            return np.full_like(self.scatter, np.nan)
        return self.scatter / (self.num_units - 1)

    def total(self, name: str) -> float:
        """The sum over all units."""
        return float(self.mean[self.column(name)] * self.num_units)

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "num_units": self.num_units,
            "mean": self.mean.tolist(),
            "scatter": self.scatter.tolist(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Moments:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: shapes disagree.
        """
        names = tuple(content["names"])
        mean, scatter = np.asarray(content["mean"], np.float64), np.asarray(content["scatter"], np.float64)
        if mean.shape != (len(names),) or scatter.shape != (len(names), len(names)):
            raise ValueError(f"moments of {len(names)} sums with shapes {mean.shape} and {scatter.shape}")
        return cls(names, int(content["num_units"]), mean, scatter)


def _check_same_names(left: tuple[str, ...], right: tuple[str, ...]) -> None:
    if left != right:
        raise ValueError(f"cannot add sums of {', '.join(left)} and of {', '.join(right)}")
