"""Row ids: 16 hex digits that name one row of one source permanently, computed by whole columns.

The id is ``xxh64(ordinal as 8 little-endian bytes, seed=xxh64(source name))``. For a fixed seed that function is a
bijection of 64-bit integers, so two rows of one source never share an id.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash

from thinktwice.errors import DataError
from thinktwice.xxh64 import xxh64_of_integers

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_BYTE_TO_HEX = np.stack([np.repeat(_DIGITS, 16), np.tile(_DIGITS, 16)], axis=1).copy().view(np.uint16)[:, 0]  # [256]
_HEX_TO_NIBBLE = np.full(256, 255, np.uint8)
_HEX_TO_NIBBLE[_DIGITS] = np.arange(16, dtype=np.uint8)


def row_ids(source: str, ordinals: np.ndarray) -> pa.StringArray:
    """Ids of rows number ``ordinals`` (int64 [R], from 0) of the source called ``source``."""
    hashes = xxh64_of_integers(ordinals, xxhash.xxh64_intdigest(source.encode("utf-8")))
    text = np.take(_BYTE_TO_HEX, hashes.astype(">u8").view(np.uint8))  # [R * 8] pairs of digits
    offsets = np.arange(0, 16 * len(hashes) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(hashes), pa.py_buffer(offsets), pa.py_buffer(text))


def row_numbers(ids: pa.Array | pa.ChunkedArray | np.ndarray) -> np.ndarray:
    """Row ids back as uint64 [R].

    Raises:
        DataError: an id is not 16 lower-case hex digits.
    """
    if not isinstance(ids, (pa.Array, pa.ChunkedArray)):
        ids = pa.array(ids, pa.string())
    try:
        fixed = ids.cast(pa.binary()).cast(pa.binary(16))
    except pa.ArrowInvalid as error:
        raise DataError("a row_id is not 16 hex digits: ingest the log again") from error
    if isinstance(fixed, pa.ChunkedArray):
        fixed = fixed.combine_chunks()
    if len(fixed) == 0:
        return np.zeros(0, np.uint64)
    if fixed.null_count:
        raise DataError("a row_id is missing: ingest the log again")
    data = np.frombuffer(fixed.buffers()[1], np.uint8)[16 * fixed.offset : 16 * (fixed.offset + len(fixed))]
    nibbles = _HEX_TO_NIBBLE[data]
    if (nibbles == 255).any():
        raise DataError("a row_id is not 16 hex digits: ingest the log again")
    packed = (nibbles[0::2] << 4) | nibbles[1::2]
    return packed.view(">u8").astype(np.uint64)
