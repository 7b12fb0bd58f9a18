"""Bins of the fields, the same for training, validation and live rows.

Categorical fields: unknown, missing, one bin for each of the most frequent training values, one for all others. Numbers: the
encoder's buckets, missing first. Sequences: number of known values. Vectors: missing, else the training quantile of their
length (Euclidean norm).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.encoder import NULL, Encoder
from thinktwice.schema import ModelField

TOP_VALUES = 20
LENGTHS = 20  # bins of a sequence's length, in addition to that of length 0
NORM_BINS = 10
COUNT_BINS = 12  # training counts: 0, 1, 2-3, 4-7, ..., 1024 and more
SCORE_BINS = 10  # quantiles of a score on validation
UNKNOWN, MISSING = 0, 1  # bins of a categorical field
KNOWN = 2


def top_values(encoder: Encoder, field: ModelField) -> list[int]:
    """Indices of the most frequent values of a categorical field; vocabularies have the most frequent first."""
    null = encoder.index_of(field.name, None)
    column = encoder.columns.index(field)
    size = encoder.num_values[column]
    return [i for i in range(1, min(size, TOP_VALUES + 2)) if i != null][:TOP_VALUES]


def num_bins(encoder: Encoder, field: ModelField, norm_edges: np.ndarray) -> int:
    """Number of bins of a field."""
    if field.kind == "categorical":
        return KNOWN + len(top_values(encoder, field)) + 1
    if field.kind == "numeric":
        return encoder.num_values[encoder.columns.index(field)]
    if field.kind == "sequence":
        return min(field.length, LENGTHS) + 1
    return len(norm_edges) + 2


def length_width(longest: int) -> int:
    """How many lengths of a sequence a bin contains, given its maximum length."""
    return -(-longest // min(longest, LENGTHS))


def labels(encoder: Encoder, field: ModelField, norm_edges: np.ndarray) -> list[str]:
    """Labels of the bins."""
    if field.kind == "categorical":
        values = [encoder.value_of(field.name, i) or "" for i in top_values(encoder, field)]
        return ["unknown", "missing", *values, "other values"]
    if field.kind == "numeric":
        return ["missing", *_steps(encoder.bounds[field.name])]
    if field.kind == "sequence":
        width = length_width(field.length)
        names = [f"{1 + width * i}-{min(width * (i + 1), field.length)}" for i in range(min(field.length, LENGTHS))]
        return ["empty", *(names if width > 1 else map(str, range(1, field.length + 1)))]
    return ["missing", *_steps(norm_edges)]


def count_labels() -> list[str]:
    """Names of the bins of training counts."""
    return [
        "never",
        "1",
        *(f"{1 << i}-{(2 << i) - 1}" for i in range(1, COUNT_BINS - 2)),
        f"{1 << COUNT_BINS - 2} or more",
    ]


def row_bins(
    encoder: Encoder, rows: EncodedRows, missing: Mapping[str, np.ndarray], norm_edges: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Bin [R] of every row, by field.

    Args:
        missing: [R] rows without a value, by categorical field. Missing values that occur in training are also known by index.
        norm_edges: inner edges of the lengths, by vector field.
    """
    out: dict[str, np.ndarray] = {}
    for column, f in enumerate(encoder.columns):
        ids = rows.ids[:, column]
        if f.kind == "numeric":
            out[f.name] = ids.astype(np.int64)
            continue
        top = top_values(encoder, f)
        position = np.full(encoder.num_values[column], KNOWN + len(top))
        position[0] = UNKNOWN
        position[top] = KNOWN + np.arange(len(top))
        if null := encoder.index_of(f.name, NULL):
            position[null] = MISSING
        out[f.name] = np.where(missing[f.name], MISSING, position[ids]) if f.name in missing else position[ids]
    for f in encoder.sequences:
        lengths = (rows.sequences[f.name] != 0).sum(axis=1)
        out[f.name] = -(-lengths // length_width(f.length))
    for f in encoder.vectors:
        norms = vector_norms(rows, f.name)
        out[f.name] = np.where(np.isnan(norms), 0, 1 + quantile_bins(norms, norm_edges[f.name]))
    return out


def count_bins(counts: np.ndarray) -> np.ndarray:
    """Bin of training counts, of any shape."""
    power = np.where(counts < 1, 0, 1 + np.floor(np.log2(np.maximum(counts, 1))))
    return np.minimum(power, COUNT_BINS - 1).astype(np.int64)


def quantile_bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of numbers between inner edges."""
    return np.searchsorted(edges, values, side="right")


def vector_norms(rows: EncodedRows, name: str) -> np.ndarray:
    """Lengths [R] of vectors, NaN for missing ones."""
    return np.sqrt((rows.vectors[name].astype(np.float64) ** 2).sum(axis=1))


def quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges of ``bins`` quantile bins; fewer if values repeat."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return np.zeros(0)
    return np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))


def missing_values(encoder: Encoder, frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """Rows [R] without a value, by categorical field."""
    return {
        f.name: frame[f.name].is_null().to_numpy() for f in encoder.columns if f.kind == "categorical" and not f.crossed
    }


def clusters_of(users: np.ndarray, requests: np.ndarray | None = None) -> np.ndarray:
    """Cluster of every row [R]: its user, else its request (>= 0), else the row itself."""
    apart = np.arange(len(users)) if requests is None else requests
    return np.where(users >= 0, users, -1 - apart)


def _steps(edges: np.ndarray) -> list[str]:
    if len(edges) == 0:
        return ["any"]
    return [f"below {e:.4g}" for e in edges] + [f"from {edges[-1]:.4g}"]
