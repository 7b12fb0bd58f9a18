"""A user's own log: one parquet file, a folder of them, or a raw log folder, described by a schema file and by no code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from thinktwice.data.sources.base import ADDED, Chunk, Reading, need_path
from thinktwice.data.sources.parquet_files import BATCH_ROWS, batches, footer, short
from thinktwice.data.sources.raw_log import is_raw_log, open_raw_log
from thinktwice.errors import DataError, SchemaError
from thinktwice.files import sha256_file


def open_parquet(path: Path | None, limit: int, seed: int) -> Reading:
    """Open a parquet file, or all ``*.parquet`` of a folder and the folders in it, in order of their paths.

    A raw log folder (what ``thinktwice data simulate`` and ``ingest`` write) is read as the log that it is.
    """
    path = need_path(path, "parquet", "your parquet file, a folder of parquet files or a raw log folder")
    if is_raw_log(path):
        return open_raw_log(path)
    files = _files_of(path) if path.is_dir() else [path]
    if not files:
        raise DataError(f"folder {path} holds no *.parquet file: give --path, your parquet file or a folder of them")
    footers = {file: footer(file) for file in files}
    schema = _united({file: columns for file, (_, columns) in footers.items()})
    taken = [c for c in ADDED if c in schema.names]
    if taken:
        raise SchemaError(f"column {taken[0]!r} of {path} has a reserved name: rename it in the file")

    def chunks() -> Iterator[Chunk]:
        start = 0
        for file in files:
            for batch in batches(file):
                table = _shaped(pa.Table.from_batches([batch]), schema)
                yield Chunk(table, np.arange(start, start + table.num_rows, dtype=np.int64))
                start += table.num_rows

    names = {str(f.relative_to(path)) if path.is_dir() else f.name: sha256_file(f) for f in files}
    num_chunks = sum(-(-num_rows // BATCH_ROWS) for num_rows, _ in footers.values())
    return Reading(str(path), schema, names, chunks, max(1, num_chunks))


def _files_of(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}): give a folder that you may read"
        ) from error

    walked = os.walk(folder, onerror=refuse)  # rglob would leave out what it may not list, without a word
    return sorted(Path(place) / name for place, _, names in walked for name in names if name.endswith(".parquet"))


def _united(schemas: dict[Path, pa.Schema]) -> pa.Schema:
    first, *rest = schemas
    united = schemas[first]
    for file in rest:
        try:
            united = pa.unify_schemas([united, schemas[file]], promote_options="permissive")
        except pa.ArrowException as error:
            raise SchemaError(
                f"{file} does not fit {first.name} beside it ({short(error)}): give files of one layout"
            ) from error
    return united


def _shaped(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of ``schema`` in its order; a column this file lacks is null."""
    if table.schema.equals(schema):
        return table
    columns = [
        table.column(f.name).cast(f.type) if f.name in table.schema.names else pa.nulls(table.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
