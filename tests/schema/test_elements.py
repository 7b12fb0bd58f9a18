"""Lists are read alike from a whole array, a part of it, and several chunks, whatever is behind a missing list."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.schema.elements import read_elements, read_vectors
from thinktwice.schema.numbers import numbers
from thinktwice.schema.values import spelled
from thinktwice.schema.weights import read_weights
from thinktwice.validate.lists import LIST, read_lists

NUMBER = st.none() | st.integers(0, 9)
ROWS = st.lists(st.none() | st.lists(NUMBER, max_size=3), min_size=1, max_size=8)
PAIRS = st.lists(st.none() | st.lists(NUMBER, min_size=2, max_size=2), min_size=1, max_size=8)
KINDS = [
    *(kind(of) for kind in (pa.list_, pa.large_list) for of in (pa.int16(), pa.float64())),
    *(pa.list_(of, 2) for of in (pa.int64(), pa.float32())),
    pa.list_(pa.dictionary(pa.int32(), pa.int64())),
]


def parts(rows: list[Any], kind: pa.DataType, start: int) -> list[tuple[pa.Array, list[Any]]]:
    """A slice, and the array with elements behind its missing lists, each with the lists that it has."""
    whole = pa.array(rows, kind)
    found = [(whole, rows), (whole.slice(start, 3), rows[start : start + 3])]
    if pa.types.is_list(kind) and not pa.types.is_dictionary(kind.value_type):
        first = pa.array([row is None or i == 0 for i, row in enumerate(rows)])
        hidden = pa.ListArray.from_arrays(whole.offsets, whole.values, mask=first)
        found.append((hidden, [None, *rows[1:]]))
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), start=st.integers(0, 7))
def test_every_reader_of_lists_reads_parts_of_arrays(kind: pa.DataType, data: st.DataObject, start: int) -> None:
    rows = data.draw(PAIRS if pa.types.is_fixed_size_list(kind) else ROWS)
    for values, expected in parts(rows, kind, start):
        words = [None if row is None else [None if v is None else str(v) for v in row] for row in expected]
        assert read_elements(values, spelled).to_list() == words
        assert read_elements(values, numbers).to_list() == expected
        assert dict(read_lists(values, "|"))[f"{LIST}|"].to_list() == [
            None if row is None else [word for word in row if word is not None] for row in words
        ]
        assert read_vectors(values).to_list() == expected
        assert read_weights(values).to_list() == [row or None for row in expected]
        assert read_weights(pa.chunked_array([values, values])).to_list() == [row or None for row in expected] * 2
