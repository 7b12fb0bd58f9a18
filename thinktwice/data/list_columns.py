"""Columns of lists and vectors as arrays of fixed width."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.errors import DataError
from thinktwice.schema import ModelField
from thinktwice.schema.values import as_series, spelled
from thinktwice.schema.weights import read_weights, row_shares, uneven


def encode_lists(
    f: ModelField,
    column: pa.ChunkedArray,
    weights: pa.ChunkedArray | None,
    widened: Callable[[pa.Array], pa.Array | pa.ChunkedArray],
    lookup: Callable[[pl.Series], np.ndarray],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices [R, L] of the elements of a list and, with ``weights``, their weights [R, L]. Elements that are unknown, missing or
    of weight 0 are left out.

    Args:
        widened: see :meth:`~thinktwice.data.encoder.Encoder.widened`.
        lookup: indices [E] of spelled values [E]; 0 is unknown.
    """
    out = np.zeros((len(column), f.length), np.int32)
    given = None if weights is None else np.zeros((len(column), f.length))
    rows = pl.DataFrame({"row": np.arange(len(column)), "value": as_series(column)})
    if weights is not None:
        rows = rows.with_columns(_full_weights(f, rows["value"].list.len().fill_null(0), weights).alias("weight"))
    flat = rows.explode(*rows.columns[1:], empty_as_null=True, keep_nulls=True).drop_nulls("value")
    words = spelled(widened(flat["value"].to_arrow()))
    flat = flat.with_columns(words.alias("value")).drop_nulls("value")
    if flat.height == 0:
        return out, None if given is None else given.astype(np.float32)
    if given is None:  # cut as a log is: to the newest values that are not missing, known or not
        flat = flat.filter(places(flat["row"].to_numpy()) < f.length)
    index = lookup(flat["value"])
    known = index > 0
    if given is not None:
        known &= flat["weight"].to_numpy() > 0
    row, index = flat["row"].to_numpy()[known], index[known]
    position = places(row)
    keep = position < f.length
    out[row[keep], position[keep]] = index[keep]
    if given is None:
        return out, None
    given[row[keep], position[keep]] = flat["weight"].to_numpy()[known][keep]
    return with_shares(out, given)


def places(row: np.ndarray) -> np.ndarray:
    """The place [E] of each element among those of the same row; ``row`` [E] ascends."""
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.zeros(0, np.int64)
    return np.arange(len(row)) - np.repeat(starts, np.diff(np.r_[starts, len(row)]))


def with_shares(index: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices [n, L] and their weights [n, L], scaled; an element whose weight is too small beside the largest is padding."""
    shares = row_shares(weights)
    index[shares == 0] = 0
    return index, shares


def _full_weights(f: ModelField, lengths: pl.Series, weights: pa.ChunkedArray) -> pl.Series:
    """The weights [R] of lists with these ``lengths`` [R]; ones where a row has none.

    Raises:
        DataError: a row has another number of weights than of elements, or a weight that is no number of at least 0.
    """
    given = read_weights(weights)
    element = pl.element()
    wrong = given.list.eval((element < 0) | element.is_null()).list.any().fill_null(False) | uneven(lengths, given)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise DataError(
            f"row {row}: {f.weights!r} is {given[row].to_list()} for {lengths[row]} elements of {f.name!r}: give one number of at least 0 "
            "for each element, or none"
        )
    ones = pl.select(pl.lit(1.0).repeat_by(pl.lit(lengths))).to_series()
    return given.zip_with(given.is_not_null(), ones)


def stack_vectors(column: pl.Series, dim: int) -> np.ndarray:
    out = np.full((len(column), dim), np.nan, np.float32)
    present = (column.is_not_null() & (column.list.len() == dim)).to_numpy()
    if present.any():
        flat = column.filter(pl.Series(present)).explode(empty_as_null=True, keep_nulls=True)
        out[present] = flat.cast(pl.Float32).to_numpy().reshape(-1, dim)
    return out
