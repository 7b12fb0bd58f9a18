"""Skew: served features compared, field by field, with the feature store's values for the same user, item and time.

It is a rate of mismatches, not a distance of distributions: two columns may have the same histogram and never agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from thinktwice.records.served import COLD_ITEM, COLD_USER, DEFAULTED

RELATIVE = 1e-6  # relative tolerance: stores use 64 or 32 bits


@dataclass(frozen=True)
class Causes:
    """Causes of differing values, as far as the tables of the store show them.

    Attributes:
        rows: differing rows examined, both values present.
        old: the served value was correct until ``hours_old`` (median) earlier: materialize more often.
        early: the store has the served value only ``hours_early`` (median) later: a leak from the future.
        never: the store never had this value for this user or item: wrong row, wrong field, or different computation.
    """

    rows: int
    old: int
    early: int
    never: int
    hours_old: float | None
    hours_early: float | None


@dataclass(frozen=True)
class FieldSkew:
    """One field over the compared rows.

    Attributes:
        rows: rows compared.
        mismatches: rows whose values differ, the two kinds below included.
        only_served: rows with a served value but none in the store.
        only_later: rows without a served value but with one in the store.
        defaulted: rows not compared because the lookup failed or timed out; of a counter, also rows scored without counters.
        cold: rows not compared because neither predictor nor store knew the user or item.
    """

    name: str
    entity: str
    rows: int
    mismatches: int
    only_served: int
    only_later: int
    defaulted: int
    cold: int
    causes: Causes | None = None

    @property
    def rate(self) -> float:
        return self.mismatches / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class SkewReport:
    """The skew of all fields.

    Attributes:
        rows: rows with at least one compared field; ``matching``: matching rows in the log.
        others: rows of the log that were excluded (raw rows, other fields, earlier times), by model version.
        versions: rows compared, by model version.
        defaulted: rows served with defaults, by entity.
        cold_known: rows served as unknown that the store knew, by entity.
    """

    fields: tuple[FieldSkew, ...]
    rows: int
    defaulted: Mapping[str, int]
    cold_known: Mapping[str, int]
    matching: int = 0
    others: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    window: tuple[str, str] = ("", "")

    def worst(self) -> FieldSkew | None:
        """The field with the highest rate; None without fields."""
        return max(self.fields, key=lambda f: f.rate, default=None)

    def skewed(self, limit: float) -> list[FieldSkew]:
        """The fields with a higher rate than ``limit``, the worst first."""
        return sorted((f for f in self.fields if f.rate > limit), key=lambda f: -f.rate)

    def as_json(self, limit: float) -> dict[str, Any]:
        """The report with its verdict."""
        fields = [asdict(f) | {"rate": f.rate, "skewed": f.rate > limit} for f in self.fields]
        return {
            "format": 1,
            "rows": self.rows,
            "rows_matching": self.matching,
            "rows_of_others": dict(self.others),
            "versions": dict(self.versions),
            "window": list(self.window),
            "defaulted_rows": dict(self.defaulted),
            "cold_rows_that_the_store_knew": dict(self.cold_known),
            "max_mismatch": limit,
            "skewed": [f.name for f in self.skewed(limit)],
            "fields": fields,
        }


def compare(
    served: pl.DataFrame, later: pl.DataFrame, fields: Sequence[tuple[str, str, str]]
) -> tuple[SkewReport, dict[str, np.ndarray]]:
    """Compare columns of the same rows in the same order.

    A row is cold for an entity if it was served as unknown and the store has no value either: there is nothing to compare.

    Args:
        served: rows of the prediction log.
        later: values of the feature store for these rows.
        fields: (name, kind of column: string, number, strings, vector or numbers, entity).

    Returns:
        The report, and for every field the rows that have both values, which differ.
    """
    if served.height != later.height:
        raise ValueError(f"{served.height} served rows and {later.height} later ones are not the same rows")
    entities = list(dict.fromkeys(entity for _, _, entity in fields))
    defaulted = {e: served[DEFAULTED].list.contains(e).fill_null(False).to_numpy() for e in entities}
    cold, cold_known = {}, {}
    for e in entities:
        unknown = served[COLD_USER if e == "user" else COLD_ITEM].fill_null(False).to_numpy() & ~defaulted[e]
        known = np.zeros(served.height, bool)
        for name, kind, entity in fields:
            if entity == e:
                known |= ~_missing(later[name], kind)
        cold[e] = unknown & ~known
        cold_known[e] = int((unknown & known).sum())
    out, differing = [], {}
    for name, kind, entity in fields:
        compared = np.flatnonzero(~defaulted[entity] & ~cold[entity])
        a, b = served[name].gather(compared), later[name].gather(compared)
        empty_a, empty_b = _missing(a, kind), _missing(b, kind)
        present = np.flatnonzero(~empty_a & ~empty_b)
        differ = present[_differ(a.gather(present), b.gather(present), kind)] if len(present) else present
        only_served, only_later = int((~empty_a & empty_b).sum()), int((empty_a & ~empty_b).sum())
        differing[name] = compared[differ]
        out.append(
            FieldSkew(
                name=name,
                entity=entity,
                rows=len(compared),
                mismatches=len(differ) + only_served + only_later,
                only_served=only_served,
                only_later=only_later,
                defaulted=int(defaulted[entity].sum()),
                cold=int(cold[entity].sum()),
            )
        )
    counts = {e: int(rows.sum()) for e, rows in defaulted.items()}
    return SkewReport(tuple(out), served.height, counts, cold_known), differing


def _missing(values: pl.Series, kind: str) -> np.ndarray:
    """Rows without a value; some online stores return an empty list as null."""
    missing = values.is_null()
    if kind == "number":
        missing |= values.is_nan().fill_null(False)
    elif kind in ("strings", "vector", "numbers"):
        missing |= (values.list.len() == 0).fill_null(False)
    return missing.to_numpy()


def _differ(a: pl.Series, b: pl.Series, kind: str) -> np.ndarray:
    if kind == "number":
        x, y = a.cast(pl.Float64).to_numpy(), b.cast(pl.Float64).to_numpy()
        return ~np.isclose(x, y, rtol=RELATIVE, atol=0.0)
    if kind in ("vector", "numbers"):
        pairs = zip(a.to_list(), b.to_list(), strict=True)
        return np.array([len(x) != len(y) or not np.allclose(x, y, rtol=RELATIVE, atol=0.0) for x, y in pairs])
    return (a != b).to_numpy()
