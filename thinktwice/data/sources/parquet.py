"""A user's own log: one parquet file, or a folder of them, described by a schema file and by no code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thinktwice.data.sources.base import Chunk, Reading, need_path
from thinktwice.errors import DataError, SchemaError
from thinktwice.files import sha256_file

BATCH_ROWS = 1 << 17
ADDED = ("row_id", "source_row")  # columns that the ingest puts before those of the source


def open_parquet(path: Path | None, limit: int, seed: int) -> Reading:
    """Open a parquet file, or all ``*.parquet`` of a folder and the folders in it, in order of their paths."""
    path = need_path(path, "parquet", "your parquet file or a folder of parquet files")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"folder {path} holds no *.parquet file: give --path, your parquet file or a folder of them")
    footers = {file: _footer(file) for file in files}
    schema = _united({file: columns for file, (_, columns) in footers.items()})
    taken = [c for c in ADDED if c in schema.names]
    if taken:
        raise SchemaError(f"column {taken[0]!r} of {path} has a reserved name: rename it in the file")

    def chunks() -> Iterator[Chunk]:
        start = 0
        for file in files:
            for batch in _batches(file):
                table = _shaped(pa.Table.from_batches([batch]), schema)
                yield Chunk(table, np.arange(start, start + table.num_rows, dtype=np.int64))
                start += table.num_rows

    names = {str(f.relative_to(path)) if path.is_dir() else f.name: sha256_file(f) for f in files}
    num_chunks = sum(-(-num_rows // BATCH_ROWS) for num_rows, _ in footers.values())
    return Reading(str(path), schema, names, chunks, max(1, num_chunks))


def _footer(file: Path) -> tuple[int, pa.Schema]:
    """Number of rows and arrow schema of a parquet file; dictionary columns count as columns of their values."""
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty: give the whole file")
    try:
        with pq.ParquetFile(file) as opened:
            columns = [
                f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in opened.schema_arrow
            ]
            return opened.metadata.num_rows, pa.schema(columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} is no intact parquet file, perhaps truncated ({_short(error)}): copy it again"
        ) from error


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as opened:
        batches = opened.iter_batches(batch_size=BATCH_ROWS)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{file} is damaged, perhaps truncated ({_short(error)}): copy it again") from error
            yield batch


def _united(schemas: dict[Path, pa.Schema]) -> pa.Schema:
    first, *rest = schemas
    united = schemas[first]
    for file in rest:
        try:
            united = pa.unify_schemas([united, schemas[file]], promote_options="permissive")
        except pa.ArrowException as error:
            raise SchemaError(
                f"{file} does not fit {first.name} beside it ({_short(error)}): give files of one layout"
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


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
