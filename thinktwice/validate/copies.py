"""Detection of later copies of a row. Two rows are copies if they are equal in every column, named by the schema or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import xxhash

from thinktwice.schema.columns import is_bytes, is_text
from thinktwice.splitmix import mix
from thinktwice.validate.raw_rows import RawRows

Hashes = npt.NDArray[np.uint64]


def later_copies(source: RawRows, first: Hashes, second: Hashes) -> npt.NDArray[np.bool_]:
    """[R] whether an equal row comes earlier, by two hashes [R] of the named columns of each row.

    The other columns, which may have any type, are read only for rows that are equal in the named ones.
    """
    candidates = repeated(first, second)
    if candidates.any() and source.unnamed:
        first = first.copy()
        for rows, batch in source.rows_at(source.unnamed, candidates):
            for array in batch.columns:
                first[rows] = mix(first[rows] ^ _hashes(array))
    return later_of_equal(first, second, candidates)


def later_of_equal(first: Hashes, second: Hashes, candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[R] whether both hashes of a row occurred together before; only ``candidates`` [R] can be such rows."""
    positions = np.flatnonzero(candidates)
    pairs = pl.DataFrame({"first": first[positions], "second": second[positions]})
    later = np.zeros(len(first), dtype=bool)
    later[positions[~pairs.select(pl.struct("first", "second").is_first_distinct()).to_series().to_numpy()]] = True
    return later


def repeated(first: Hashes, second: Hashes) -> npt.NDArray[np.bool_]:
    """Rows whose hashes occur more than once."""
    order = np.lexsort((second, first))
    equal = (first[order][1:] == first[order][:-1]) & (second[order][1:] == second[order][:-1])
    marked = np.zeros(len(first), dtype=bool)
    marked[order[1:][equal]] = True
    marked[order[:-1][equal]] = True
    return marked


def _hashes(array: pa.Array) -> Hashes:
    """A hash of each value [n] of any type; equal values have equal hashes."""
    kind = array.type
    if pt.is_dictionary(kind):
        return _hashes(array.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):
        return _hashes(array.storage)
    if pt.is_struct(kind):
        hashes = _valid(array)
        for child in array.flatten():
            hashes = mix(hashes ^ _hashes(child))
        return hashes
    if pt.is_map(kind):
        offsets = array.offsets.to_numpy()
        entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
        return _hashes_of_lists(array, entries.slice(offsets[0], offsets[-1] - offsets[0]), np.diff(offsets))
    if pt.is_nested(kind):
        sizes = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return _hashes_of_lists(array, pc.list_flatten(array), sizes)
    coded = _as_bytes(array).dictionary_encode()
    known = [xxhash.xxh3_64_intdigest(value) for value in coded.dictionary.to_pylist()]
    codes = coded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    return np.array([*known, 1], dtype=np.uint64)[codes]


def _hashes_of_lists(array: pa.Array, values: pa.Array, sizes: npt.NDArray[Any]) -> Hashes:
    """``values``: the concatenated elements of all lists; ``sizes`` [n]: number of elements of each list."""
    parents = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.arange(len(parents)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    hashes = _valid(array) + sizes.astype(np.uint64)
    np.add.at(hashes, parents, mix(_hashes(values) + positions.astype(np.uint64)))
    return mix(hashes)


def _valid(array: pa.Array) -> Hashes:
    return array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint64) << np.uint64(63)


def _as_bytes(array: pa.Array) -> pa.Array:
    """The values of a type that is not nested as bytes, nulls as nulls."""
    kind = array.type
    if is_text(kind) or is_bytes(kind):
        return array.cast(pa.large_binary())
    if pt.is_boolean(kind):
        return _as_bytes(array.cast(pa.uint8()))
    if pt.is_null(kind):
        return array.cast(pa.binary())
    return array.view(pa.binary(kind.bit_width // 8))
