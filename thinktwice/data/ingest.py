"""Ingest of a source into a raw log folder: unchanged columns of the source, a row id before them, and all broken records.

The folder contains ``log.parquet``, ``unparsable.parquet``, ``schema.yaml`` and ``snapshot.json``, and for a source with
tables of users and items ``side_unparsable.parquet``, the lines of these tables without attributes. The same input gives
the same snapshot id and the same rows on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from thinktwice.data.reading import (
    LOG_FILE,
    SIDE_FILE,
    SNAPSHOT_FILE,
    SOURCE_ROW,
    UNPARSABLE_FILE,
    Chunk,
    Reading,
)
from thinktwice.data.reading import SCHEMA_FILE as SCHEMA_FILE
from thinktwice.data.row_ids import row_ids
from thinktwice.data.side_tables import read_tables
from thinktwice.data.simulator.config import SimConfig
from thinktwice.data.simulator.source import reading_of
from thinktwice.data.sources.parts import printable, what_was_read
from thinktwice.data.sources.raw_log import schema_beside
from thinktwice.data.sources.registry import builtin_schema, source_named
from thinktwice.data.window import Window, window_of
from thinktwice.errors import DataError, RowsLostError
from thinktwice.files import atomic_dir, sha256_text, write_json
from thinktwice.parquet import num_rows, parquet_writer, read_table, write_table
from thinktwice.progress import note, tell, track
from thinktwice.schema import LogSchema, load_schema
from thinktwice.schema.columns import check_columns
from thinktwice.schema.tables import located, stored_schema
from thinktwice.storage.location import as_text, is_remote

UNPARSABLE = pa.schema(
    [("row_id", pa.string()), (SOURCE_ROW, pa.int64()), ("raw", pa.string()), ("error", pa.string())]
)


class Snapshot(BaseModel):
    """The result of an ingest: ``rows`` in the log and ``unparsable_rows`` outside it are all records of the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    schema_name: str
    snapshot_id: str
    rows: int
    unparsable_rows: int
    limit: int
    seed: int
    files: dict[str, str]  # name -> SHA-256
    tables: dict[str, int] = {}  # side tables of the schema -> rows
    side_unparsable: dict[str, int] = {}  # broken lines of user and item tables: lost attributes, not lost impressions
    side_duplicates: dict[str, int] = {}  # lines of them whose user or item has an earlier line; the earlier one counts
    left_out: dict[str, str] = {}  # files and folders that are not part of the log -> why
    columns_left_out: dict[str, str] = {}  # columns of the files that are not in the log -> why
    columns_missing: dict[str, str] = {}  # columns of the schema that some files lack (null there) -> first such file
    rows_outside: int = 0  # rows that were not read because their time is outside --since and --until
    notes: tuple[str, ...] = ()  # how the files were read

    def what_was_read(self) -> list[str]:
        """Lines about the files and columns of a log that is a folder of files; empty if all of it was read."""
        of_tables = sum(name.startswith(tuple(f"{table}: " for table in self.tables)) for name in self.files)
        num_files = len(self.files) - of_tables if self.source in ("log", "parquet") else 1
        lines = what_was_read(num_files, self.left_out, self.columns_left_out, self.columns_missing)
        lines += [f"{rows:,} rows of the table {name}" for name, rows in self.tables.items()]
        lines += self.notes
        if self.rows_outside:
            lines.append(f"{self.rows_outside:,} rows outside --since and --until were not read")
        return lines


def ingest(
    source: str,
    path: Path | str | None,
    schema_path: Path | str | LogSchema | None,
    out_dir: Path | str,
    limit: int = 0,
    seed: int = 0,
    *,
    since: str = "",
    until: str = "",
) -> Snapshot:
    """Read a source into the raw log folder ``out_dir`` (replaced as a whole, or unchanged after an error).

    Args:
        source: name of a source, see ``thinktwice data list``.
        path: file or folder of the source, for ``log`` also several, a line each, and ``s3://``; empty or None for sources without one.
        schema_path: schema file, also ``s3://``, or a loaded schema; empty or None for that of a built-in source or of a raw log folder.
        out_dir: folder to write.
        limit: maximum number of records; 0 reads all. For ``sim`` the number of rows to draw.
        seed: for sources that draw rows (``sim``); others do not depend on it.
        since, until: read impressions from the first time until before the second one; empty texts mean no border.

    Raises:
        DataError: unknown source, missing, empty or damaged input, or a side table that describes a key twice. SchemaError: the schema does not fit the input.
        ResourceError: no network to download a data set, or the disk is full.
    """
    adapter = source_named(source)
    if limit < 0:
        raise DataError(f"limit {limit} is negative: give a number of rows, or 0 for all")
    if adapter.path == "none" and path:
        raise DataError(f"source {source!r} takes no path, but {path} was given: leave --path out")
    if not schema_path and not adapter.has_schema:
        schema_path = schema_beside(Path(path)) if path and not is_remote(as_text(path)) else None
    if not schema_path and not adapter.has_schema:
        raise DataError(f"source {source!r} needs a schema file that describes your log: pass it with --schema")
    if isinstance(schema_path, LogSchema):
        schema = schema_path
    else:
        schema = located(load_schema(schema_path), schema_path) if schema_path else builtin_schema(source)
    seed = seed if adapter.seeded else 0
    reading = adapter.open(path or None, limit, seed, schema)
    return write_raw_log(source, reading, schema, Path(out_dir), limit, seed, window_of(since, until, schema))


def write_raw_log(
    source: str,
    reading: Reading,
    schema: LogSchema,
    out_dir: Path,
    limit: int,
    seed: int,
    window: Window = Window(None, None),  # noqa: B008 - frozen
) -> Snapshot:
    """Write an opened source as a raw log folder; see :func:`ingest`."""
    check_columns(schema, reading.columns, reading.where)
    borders = (f"since {window.since}", f"until {window.until}") if window else ()
    with atomic_dir(out_dir) as folder:
        tables = read_tables(schema, source, folder)
        schema = stored_schema(schema)
        identity = (*reading.files.values(), *reading.identity, *tables.files.values(), *tables.identity)
        digest = sha256_text(source, *identity, str(limit), str(seed), *borders, schema.to_yaml())
        rows, unparsable_rows, outside = _write_rows(source, reading, folder, limit, window, schema)
        if rows == 0 and outside:
            raise DataError(
                f"all {outside:,} rows of {reading.where} are outside --since and --until: choose other times"
            )
        if rows == 0:
            raise DataError(_no_rows_message(reading, folder, unparsable_rows))
        snapshot = Snapshot(
            source=source,
            schema_name=schema.name,
            snapshot_id=digest[:16],
            rows=rows,
            unparsable_rows=unparsable_rows,
            limit=limit,
            seed=seed,
            files=reading.files | tables.files,
            tables=tables.rows,
            side_unparsable=(reading.side.unparsable if reading.side else {}) | tables.unparsable,
            side_duplicates=reading.side.duplicates if reading.side else {},
            left_out={printable(name): why for name, why in reading.left_out.items()},
            columns_left_out=reading.columns_left_out,
            columns_missing=reading.columns_missing,
            rows_outside=outside,
            notes=(*reading.notes, *tables.notes),
        )
        if reading.side or tables.rows:
            lines = [tables.lines, *([reading.side.lines] if reading.side else [])]
            write_table(pa.concat_tables(lines), folder / SIDE_FILE, compression="zstd")
        (folder / SCHEMA_FILE).write_text(schema.to_yaml(), encoding="utf-8")
        write_json(folder / SNAPSHOT_FILE, snapshot.model_dump(mode="json"))
    note("ingest", f"{rows:,} rows" + (f", {unparsable_rows:,} unparsable" if unparsable_rows else ""))
    for line in snapshot.what_was_read():
        tell("ingest", line)
    return snapshot


def _write_rows(
    source: str, reading: Reading, folder: Path, limit: int, window: Window, schema: LogSchema
) -> tuple[int, int, int]:
    """Counts of rows written, of unparsable records and of rows outside the window."""
    fields = [pa.field("row_id", pa.string()), pa.field(SOURCE_ROW, pa.int64()), *reading.columns]
    columns = pa.schema([f.with_metadata(None) for f in fields])
    dictionary = [f.name for f in columns if _repeats(f)]
    rows = unparsable_rows = records = outside = 0
    with (
        parquet_writer(
            folder / LOG_FILE,
            columns,
            compression="zstd",
            compression_level=1,
            use_dictionary=dictionary,
            write_statistics=False,
        ) as log,
        parquet_writer(folder / UNPARSABLE_FILE, UNPARSABLE, compression="zstd") as unparsable_writer,
    ):
        for chunk in track(_ahead(_limited(reading, limit)), stage="ingest", total=reading.num_chunks, label=source):
            records += chunk.table.num_rows + len(chunk.unparsable)
            if window:
                outside += chunk.table.num_rows
                chunk = window.inside(chunk, schema)
                outside -= chunk.table.num_rows
            if chunk.table.num_rows:
                ids = [row_ids(source, chunk.ordinals), pa.array(chunk.ordinals, pa.int64())]
                log.write_table(pa.table([*ids, *chunk.table.columns], schema=columns))
                rows += chunk.table.num_rows
            if chunk.unparsable:
                unparsable_writer.write_table(_unparsable_table(source, chunk))
                unparsable_rows += len(chunk.unparsable)
    written = num_rows(folder / LOG_FILE) + num_rows(folder / UNPARSABLE_FILE)
    if written + outside != records:
        raise RowsLostError(f"{records} records were read from {reading.where} but {written} written: run it again")
    return rows, unparsable_rows, outside


def _repeats(field: pa.Field) -> bool:
    """Whether a parquet dictionary is likely to save space: ids and names repeat, row ids and measurements do not."""
    if field.name in ("row_id", SOURCE_ROW):
        return False
    return not (pa.types.is_nested(field.type) or pa.types.is_floating(field.type))


def _ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks; the next one is prepared while this one is written (both mostly release the interpreter lock)."""
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = maker.submit(next, chunks, None)
            yield chunk


def _limited(reading: Reading, limit: int) -> Iterator[Chunk]:
    """Chunks up to record number ``limit``. Record numbers must have no gap: a source that loses a record fails."""
    rows = 0
    for chunk in reading.chunks():
        numbers = np.concatenate([chunk.ordinals, np.array([u.ordinal for u in chunk.unparsable], np.int64)])
        if len(numbers) and not (numbers.min() == rows and numbers.max() == rows + len(numbers) - 1):
            raise RowsLostError(
                f"records {rows} to {int(numbers.max())} of {reading.where} were not all read: run it again"
            )
        rows += len(numbers)
        if limit and rows >= limit:
            keep = int(np.searchsorted(chunk.ordinals, limit))
            yield Chunk(
                chunk.table.slice(0, keep),
                chunk.ordinals[:keep],
                tuple(u for u in chunk.unparsable if u.ordinal < limit),
            )
            return
        yield chunk


def _unparsable_table(source: str, chunk: Chunk) -> pa.Table:
    ordinals = np.array([u.ordinal for u in chunk.unparsable], np.int64)
    raw = pa.array([u.raw for u in chunk.unparsable], pa.string())
    errors = pa.array([u.error for u in chunk.unparsable], pa.string())
    return pa.table([row_ids(source, ordinals), pa.array(ordinals), raw, errors], schema=UNPARSABLE)


def _no_rows_message(reading: Reading, folder: Path, unparsable_rows: int) -> str:
    if not unparsable_rows:
        return f"{reading.where} contains no rows: give the whole file"
    first = read_table(folder / UNPARSABLE_FILE).slice(0, 1).to_pylist()[0]
    return (
        f"none of the {unparsable_rows} lines of {reading.where} could be split into columns "
        f"(the first: {first['error']}): give a file in the layout of this source"
    )


def simulate(config: SimConfig, out_dir: Path | str) -> Snapshot:
    """Draw ``config`` into the raw log folder ``out_dir``, with the built-in schema ``sim``; streamed, memory stays bounded."""
    return write_raw_log("sim", reading_of(config), builtin_schema("sim"), Path(out_dir), config.rows, config.seed)
