"""Row ids as numbers, and a hash that proves that a set of them is conserved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from thinktwice.errors import DataError
from thinktwice.schema.fields import ROW_ID
from thinktwice.splitmix import mix
from thinktwice.validate.raw_rows import frame_of, parquet_file

Keys = npt.NDArray[np.uint64]


def row_keys(row_ids: pl.Series, *, where: str) -> Keys:
    """Row ids as numbers. Raises DataError if one is not 16 hex digits."""
    if row_ids.len() and not bool((row_ids.str.len_bytes() == 16).fill_null(False).all()):
        raise DataError(f"{where}: {ROW_ID} must be 16 hex digits in every row; ingest the log again")
    try:
        return np.frombuffer(bytes.fromhex("".join(row_ids.to_list())), dtype=">u8").astype(np.uint64)
    except ValueError as error:
        raise DataError(f"{where}: {ROW_ID} must be 16 hex digits in every row; ingest the log again") from error


def key_hash(keys: Keys) -> str:
    """Order-free hash of a set of row keys: the sum modulo 2**64 of the mixed keys (splitmix64), as 16 hex digits."""
    return f"{int(mix(keys).sum(dtype=np.uint64)):016x}"


def read_keys(path: Path) -> Keys:
    """The row keys of a parquet file, in its order."""
    with parquet_file(path) as file:
        batches = [row_keys(frame_of(b)[ROW_ID], where=str(path)) for b in file.iter_batches(columns=[ROW_ID])]
    return np.concatenate([np.zeros(0, np.uint64), *batches])
