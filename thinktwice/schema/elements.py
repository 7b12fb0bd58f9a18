"""Lists in an Arrow array whose elements are read by a function of plain arrays, and vectors, which may also be texts.

An array may be a part of another one: its child then has elements of other rows, and a missing list may have elements behind it.
Both are left out here, so no reader touches offsets and children itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from thinktwice.schema.numbers import SPACE, holds_text, numbers
from thinktwice.schema.values import as_series, texts


def read_elements(values: pa.Array, read: Callable[[pa.Array], pl.Series]) -> pl.Series:
    """The lists [R] of an array of any list type with each element read by ``read``; null where the list is null.

    Args:
        read: the elements of all lists [E] to their values [E], of a type that polars knows.
    """
    missing = values.is_null()
    sizes = np.where(missing, 0, pc.list_value_length(values).fill_null(0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int64())
    elements = read(pc.list_flatten(values)).to_arrow()
    return as_series(pa.LargeListArray.from_arrays(offsets, elements, mask=missing))


def read_vectors(values: pa.Array) -> pl.Series:
    """The vectors [R] of lists of numbers, or of texts of numbers with commas between them (in square brackets or not), as lists of
    float32; an element that is no number is null, as is a missing vector."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_null(values.type):
        return pl.Series([None] * len(values), dtype=pl.List(pl.Float32))
    if holds_text(values.type):
        inner = texts(values).str.strip_chars("[]" + SPACE).str.split(",")
        parsed = inner.list.eval(pl.element().str.strip_chars(SPACE).cast(pl.Float64, strict=False))
        return parsed.cast(pl.List(pl.Float32))
    if values.type.value_type in (pa.float32(), pa.float64()):
        return as_series(values).cast(pl.List(pl.Float32))
    return read_elements(values, numbers).cast(pl.List(pl.Float32))
