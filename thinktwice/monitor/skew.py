"""Served features against what the feature store says of the same user and item at the same moment, field by field.

A rate of mismatches, not a distance of distributions: two columns may have the same histogram and never agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

RELATIVE = 1e-6  # numbers closer than this are one number: stores keep 64 and 32 bits


@dataclass(frozen=True)
class FieldSkew:
    """One field over the compared rows.

    Attributes:
        rows: rows compared.
        mismatches: rows whose values differ, those below included.
        only_served: rows with a served value where the store has none later.
        only_later: rows without a served value where the store has one later.
    """

    name: str
    rows: int
    mismatches: int
    only_served: int
    only_later: int

    @property
    def rate(self) -> float:
        return self.mismatches / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class SkewReport:
    """All fields, and how many rows were left out because they were served with defaults."""

    fields: tuple[FieldSkew, ...]
    rows: int
    defaulted: Mapping[str, int]

    def worst(self) -> FieldSkew | None:
        """The field with the highest rate; None without fields."""
        return max(self.fields, key=lambda f: f.rate, default=None)

    def as_json(self, limit: float) -> dict[str, Any]:
        """The report with its verdict."""
        found = [asdict(f) | {"rate": f.rate, "skewed": f.rate > limit} for f in self.fields]
        return {"rows": self.rows, "defaulted_rows": dict(self.defaulted), "max_mismatch": limit, "fields": found}


def compare(
    served: pl.DataFrame, later: pl.DataFrame, fields: Sequence[tuple[str, str, str]], entities: Sequence[str]
) -> SkewReport:
    """Compare columns of the same rows in the same order.

    Args:
        served: rows of the prediction log.
        later: values of the feature store for these rows.
        fields: (name, kind of column: string, number, strings or vector, entity).
        entities: entities that occur, for the count of defaulted rows.
    """
    if served.height != later.height:
        raise ValueError(f"{served.height} served rows and {later.height} later ones are not the same rows")
    defaulted = {e: served["log_defaulted"].list.contains(e).fill_null(False).to_numpy() for e in entities}
    out = []
    for name, kind, entity in fields:
        kept = ~defaulted[entity]
        a, b = served[name].filter(pl.Series(kept)), later[name].filter(pl.Series(kept))
        empty_a, empty_b = _missing(a, kind), _missing(b, kind)
        differ = np.zeros(len(a), bool)
        both = ~empty_a & ~empty_b
        if both.any():
            differ[both] = _differ(a.filter(pl.Series(both)), b.filter(pl.Series(both)), kind)
        only_served, only_later = int((~empty_a & empty_b).sum()), int((empty_a & ~empty_b).sum())
        out.append(FieldSkew(name, len(a), int(differ.sum()) + only_served + only_later, only_served, only_later))
    return SkewReport(tuple(out), served.height, {e: int(found.sum()) for e, found in defaulted.items()})


def _missing(values: pl.Series, kind: str) -> np.ndarray:
    """Rows without a value; an empty list comes back from some online stores as null."""
    missing = values.is_null()
    if kind == "number":
        missing |= values.is_nan().fill_null(False)
    elif kind in ("strings", "vector"):
        missing |= (values.list.len() == 0).fill_null(False)
    return missing.to_numpy()


def _differ(a: pl.Series, b: pl.Series, kind: str) -> np.ndarray:
    if kind == "number":
        x, y = a.cast(pl.Float64).to_numpy(), b.cast(pl.Float64).to_numpy()
        return ~np.isclose(x, y, rtol=RELATIVE, atol=0.0)
    if kind == "vector":
        pairs = zip(a.to_list(), b.to_list(), strict=True)
        return np.array([len(x) != len(y) or not np.allclose(x, y, rtol=RELATIVE, atol=0.0) for x, y in pairs])
    return (a != b).to_numpy()
