"""Weights of the elements of lists: how they are read, which are wrong, and what the model reads of them.

Weights are parallel to their list: one finite number of at least 0 per element. A row without weights, or with an empty list of them,
gives every element the weight 1. The pooled vector of a list is the mean of its elements' vectors, weighted; only ratios matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.schema.elements import read_elements
from thinktwice.schema.numbers import holds_text, number, numbers
from thinktwice.schema.values import texts

#: A weight of less than this share of the largest of its row counts as 0: products with it would lose digits in float32.
SMALLEST = 1e-30


def weight(value: Any) -> float:
    """One weight.

    Raises:
        NumberRangeError: the number is out of range.
        ValueError: the value is missing, not a number, or negative.
    """
    parsed = number(value)
    if parsed is None:
        raise ValueError("is missing")
    if parsed < 0:
        raise ValueError("is negative")
    return parsed


def read_weights(values: pa.Array | pa.ChunkedArray, separator: str | None = None) -> pl.Series:
    """The weights of every row as lists of float64; an element that is no number is null, as is a row without weights.

    Args:
        values: lists of numbers or, with a ``separator``, texts of numbers between separators.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_null(values.type):
        return pl.Series([None] * len(values), dtype=pl.List(pl.Float64))
    if holds_text(values.type):
        assert separator is not None
        text = texts(values)
        words = pl.select(pl.when(text != "").then(pl.lit(text)).otherwise(None).str.split(separator)).to_series()
        values = words.to_arrow()
    lists = read_elements(values, numbers)
    return pl.select(pl.when(pl.lit(lists).list.len() > 0).then(pl.lit(lists))).to_series()


def uneven(lengths: pl.Series, weights: pl.Series) -> pl.Series:
    """[R] whether a row has weights, and their number is not that of its elements, ``lengths`` [R]."""
    return (weights.list.len() != lengths.fill_null(0)).fill_null(False)


def row_shares(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Weights [R, L] over the largest of their row, float32; all 0 where the row has none.

    So a number that float32 does not have cannot become infinite or 0, and a row whose weights are all the same has ones.
    """
    largest = weights.max(axis=1, initial=0.0, keepdims=True)
    scaled = np.divide(weights, largest, out=np.zeros_like(weights), where=largest > 0)
    scaled[scaled < SMALLEST] = 0.0
    return scaled.astype(np.float32)
