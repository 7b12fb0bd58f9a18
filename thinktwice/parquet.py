"""Reading and writing of parquet files by their exact path.

Libraries that read parquet interpret patterns (``[1]``, ``*``), partitions (a folder ``price=7`` in the path becomes or
replaces a column), URIs and ``~`` in paths. This module takes a path literally. Nothing else in the project opens a parquet
file by its path, except queries, through :mod:`thinktwice.query`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from thinktwice.storage.object_path import AnyPath, ObjectPath

COLUMN_BYTES = 1 << 20  # of a column of an object, read at a time


def read_frame(path: Path | str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The file as a polars frame; ``columns`` names those to read."""
    selected = None if columns is None else list(columns)
    return pl.read_parquet(_exact(path), columns=selected, glob=False, hive_partitioning=False)


def scan_frame(path: Path | str) -> pl.LazyFrame:
    """The file as a lazy polars frame."""
    return pl.scan_parquet(_exact(path), glob=False, hive_partitioning=False)


def write_frame(frame: pl.DataFrame, path: Path | str) -> None:
    """Write a polars frame."""
    frame.write_parquet(_exact(path))


def open_parquet(path: AnyPath | str, *, checked: bool = False) -> pq.ParquetFile:
    """The file, opened; a context manager that closes it. ``checked``: pages that have a checksum are compared with it.

    Of an object, columns are read in blocks: memory is bounded by the number of columns, whatever the size of a row group.
    """
    if isinstance(path, ObjectPath):
        return pq.ParquetFile(path.open("rb", buffering=COLUMN_BYTES), buffer_size=COLUMN_BYTES, pre_buffer=False)
    return pq.ParquetFile(_exact(path), filesystem=LocalFileSystem(), page_checksum_verification=checked)


def read_table(path: Path | str, columns: Sequence[str] | None = None, *, checked: bool = False) -> pa.Table:
    """The file as an arrow table; ``columns`` names those to read. For ``checked`` see :func:`open_parquet`."""
    with open_parquet(path, checked=checked) as file:
        if columns is None:
            return file.read()
        return file.read(list(columns)).select(list(columns))  # arrow reads ``a.b`` along with ``a``


def read_schema(path: Path | str) -> pa.Schema:
    """Arrow schema of the file."""
    with open_parquet(path) as file:
        return file.schema_arrow


def num_rows(path: Path | str) -> int:
    """Number of rows of the file, from its footer."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def parquet_writer(path: Path | str, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """A writer of ``path``; a context manager that closes the file. ``options`` are those of ``pq.ParquetWriter``."""
    return pq.ParquetWriter(_exact(path), schema, filesystem=LocalFileSystem(), **options)


def write_table(table: pa.Table, path: Path | str, **options: Any) -> None:
    """Write an arrow table; ``options`` are those of ``pq.ParquetWriter``."""
    with parquet_writer(path, table.schema, **options) as writer:
        writer.write_table(table)


def _exact(path: Path | str) -> str:
    """An absolute path: a relative one could begin with ``~`` or look like a URI (``a:b``)."""
    return str(Path(path).absolute())
