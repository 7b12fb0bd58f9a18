"""Distances between two distributions of one field, and how well the field alone separates clicks from non-clicks.

Distances, not p-values: at a million rows every p-value is zero.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import polars as pl

TOP_VALUES = 20
OTHER = "other values"
MISSING = "missing"
PRIOR_WEIGHT = 20.0  # weight, in rows, of the prior click rate of a value


def hashed(value: str) -> str:
    """Display form of a value that identifies a user: a hash, equal for equal values."""
    return "#" + hashlib.sha256(f"thinktwice:{value}".encode()).hexdigest()[:8]


class ValueBins(NamedTuple):
    """Bins of a field's values: the most frequent values of a reference, all others, missing.

    ``values`` are raw values (categoricals) or bin numbers (numbers, then ``edges`` are their inner borders).
    """

    values: tuple[Any, ...]
    edges: np.ndarray | None

    @classmethod
    def of_reference(cls, counts: pl.DataFrame, edges: np.ndarray | None) -> ValueBins:
        """Bins from the groups (value, ..., n) of a reference."""
        if edges is not None:
            return cls(tuple(range(len(edges) + 1)), edges)
        by_value = counts.drop_nulls("value").group_by("value").agg(pl.col("n").sum())
        top = by_value.sort(["n", "value"], descending=[True, False]).head(TOP_VALUES)
        return cls(tuple(top["value"].to_list()), None)

    def labels(self) -> list[str]:
        """The label of each bin."""
        if self.edges is None:
            names = [str(v) for v in self.values]
        elif len(self.edges):
            names = [f"up to {e:.4g}" for e in self.edges] + [f"over {self.edges[-1]:.4g}"]
        else:
            names = ["any number"]
        return [*names, OTHER, MISSING]

    def to_json(self, counts: pl.DataFrame, *, secret: bool) -> dict[str, Any]:
        """The bins with the shares of ``counts`` in them; values that identify users are hashed."""
        row_counts = bin_counts(counts, self)
        values = [hashed(v) for v in self.values] if secret else list(self.values)
        edges = None if self.edges is None else [float(e) for e in self.edges]
        shares = (row_counts / max(1, row_counts.sum())).tolist()
        return {"values": values, "edges": edges, "shares": shares, "rows": int(row_counts.sum())}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> tuple[ValueBins, np.ndarray, int]:
        """(bins, shares, rows) as written by :meth:`to_json`."""
        edges = None if value["edges"] is None else np.asarray(value["edges"], dtype=float)
        return cls(tuple(value["values"]), edges), np.asarray(value["shares"], dtype=float), int(value["rows"])


def bin_counts(counts: pl.DataFrame, bins: ValueBins) -> np.ndarray:
    """Rows per bin [len(values) + 2] of the groups (value, ..., n): each value, all others, missing."""
    position = {value: i for i, value in enumerate(bins.values)}
    other_bin, missing_bin = len(position), len(position) + 1
    by_value = counts.group_by("value").agg(pl.col("n").sum())
    out = np.zeros(len(position) + 2)
    known = by_value.filter(pl.col("value").is_in(list(position))) if position else by_value.clear()
    for value, n in known.iter_rows():
        out[position[value]] += n
    out[missing_bin] = int(by_value.filter(pl.col("value").is_null())["n"].sum())
    out[other_bin] = int(by_value["n"].sum()) - out[:other_bin].sum() - out[missing_bin]
    return out


def psi(reference: np.ndarray, now: np.ndarray) -> float | None:
    """Population stability index of two arrays of counts [bins]; half a row is added to every bin. None without rows."""
    if reference.sum() == 0 or now.sum() == 0:
        return None
    p = (reference + 0.5) / (reference + 0.5).sum()
    q = (now + 0.5) / (now + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


def ks(reference: np.ndarray, now: np.ndarray) -> float | None:
    """Kolmogorov-Smirnov distance of numbers, from counts in ordered bins (the last two, other and missing, do not count)."""
    before, after = reference[:-2], now[:-2]
    if before.sum() == 0 or after.sum() == 0:
        return None
    return float(np.abs(np.cumsum(before) / before.sum() - np.cumsum(after) / after.sum()).max())


def single_field_auc(counts: pl.DataFrame) -> tuple[float | None, int]:
    """AUC of the smoothed click rate per value, learned from even rows and measured on odd rows, and the number of odd rows
    of the smaller class.

    ``counts``: groups (value, parity, n, clicks). A copy of the label gives 1; None if the odd rows have one class.
    """
    halves = counts.group_by("value", "parity").agg(pl.col("n", "clicks").sum())
    fitted = halves.filter(~pl.col("parity")).select("value", "n", "clicks")
    held_out = halves.filter("parity").select("value", "n", "clicks")
    prior = int(fitted["clicks"].sum()) / max(1, int(fitted["n"].sum()))
    rate = (pl.col("clicks") + PRIOR_WEIGHT * prior) / (pl.col("n") + PRIOR_WEIGHT)
    scored = held_out.join(fitted.select("value", rate.alias("score")), on="value", how="left", nulls_equal=True)
    by_score = (
        scored.with_columns(pl.col("score").fill_null(prior))
        .group_by("score")
        .agg(pl.col("n", "clicks").sum())
        .sort("score")
    )
    positive = by_score["clicks"].to_numpy().astype(float)
    negative = by_score["n"].to_numpy().astype(float) - positive
    fewest = int(min(positive.sum(), negative.sum()))
    if fewest == 0:
        return None, 0
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum())), fewest
