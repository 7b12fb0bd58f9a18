"""Lists in an Arrow array whose elements are read by a function of plain arrays.

An array may be a part of another one: its child then has elements of other rows, and a missing list may have elements behind it.
Both are left out here, so no reader touches offsets and children itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from thinktwice.schema.values import as_series


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
