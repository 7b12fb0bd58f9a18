"""Interface of log sources: unchanged raw columns in chunks, and the records that could not be read, with their text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.errors import DataError, RowsLostError
from thinktwice.schema import SCHEMA_FILE as SCHEMA_FILE
from thinktwice.schema import LogSchema
from thinktwice.storage.location import as_text, is_remote
from thinktwice.storage.object_path import AnyPath

# The files of a raw log folder, and the columns that an ingest puts before those of the source.
LOG_FILE = "log.parquet"
UNPARSABLE_FILE = "unparsable.parquet"
SIDE_FILE = "side_unparsable.parquet"
SNAPSHOT_FILE = "snapshot.json"
SOURCE_ROW = "source_row"
ADDED = ("row_id", SOURCE_ROW)

#: Lines of user and item tables without attributes; ``line`` counts from 1, as in editors.
SIDE_LINES = pa.schema([("file", pa.string()), ("line", pa.int64()), ("raw", pa.string()), ("error", pa.string())])


@dataclass(frozen=True)
class Unparsable:
    """A record that could not be split into columns: its number in the source (from 0), its text and the reason."""

    ordinal: int
    raw: str
    error: str


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of a source. ``ordinals`` int64 [R] numbers the R rows of ``table`` in the source."""

    table: pa.Table
    ordinals: np.ndarray
    unparsable: tuple[Unparsable, ...] = ()


@dataclass(frozen=True)
class SideLosses:
    """Lines of user and item tables that did not become rows: ``lines`` as :data:`SIDE_LINES`, and the counts per file."""

    lines: pa.Table
    unparsable: dict[str, int]
    duplicates: dict[str, int]  # lines whose key has an earlier line; the earlier one counts


@dataclass(frozen=True)
class Reading:
    """An opened source, before reading.

    Attributes:
        where: names the input in messages.
        columns: the raw columns with their types.
        files: name -> SHA-256 of all files that determine the content.
        chunks: starts reading; ordinals continue over all chunks.
        num_chunks: expected number of chunks, for progress only.
        side: lines of the side tables (users, items) without attributes; no impressions are lost by them. None: no such tables.
        left_out: files and folders below the source that are not part of the log -> why.
        columns_left_out: columns of the files that are not in the log -> why; the schema names none of them.
        columns_missing: columns of the schema that some files lack -> the first of them; they are null there.
        identity: further texts that determine the content, for the snapshot id.
        notes: sentences about how the files are read, for the user.
    """

    where: str
    columns: pa.Schema
    files: dict[str, str]
    chunks: Callable[[], Iterator[Chunk]]
    num_chunks: int = 1
    side: SideLosses | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    columns_left_out: dict[str, str] = field(default_factory=dict)
    columns_missing: dict[str, str] = field(default_factory=dict)
    identity: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One kind of input. ``open(path, limit, seed, schema)`` inspects it and returns a :class:`Reading`."""

    name: str
    about: str
    path: Literal["none", "optional", "required"]
    path_help: str
    open: Callable[[Path | str | None, int, int, LogSchema], Reading]
    has_schema: bool = True
    seeded: bool = False  # whether the rows depend on the seed
    several: bool = False  # whether `path` may be several paths or a pattern


def is_object(path: str) -> bool:
    """Whether a path of a log is a URL, of an object store or of the web; a file of this machine may have such a name."""
    return is_remote(path) and not Path(path).exists()


def refuse_url(path: Path | str, source: str) -> None:
    """Raise DataError for a URL: all sources but ``log`` read files of this machine."""
    url = as_text(path)
    if is_object(url):
        raise DataError(
            f"{url} is not a local path, and source {source!r} reads files of this machine: copy it here and give its local path with "
            "--path, or describe it by a schema file and use --source log, which also reads s3://"
        )


def need_path(path: Path | str | None, source: str, what: str) -> Path:
    """The given path of this machine, which must exist and, if it is a folder, be readable.

    Raises:
        DataError: no path was given, it does not exist, or it is not readable.
    """
    if path is None:
        raise DataError(f"source {source!r} reads your own copy: give --path, {what}")
    refuse_url(path, source)
    path = Path(path)
    with readable(path):
        if not path.exists():
            raise DataError(f"no such path: {path}; give --path, {what}")
        if path.is_dir():
            os.scandir(path).close()  # an unreadable folder would look empty
    return path


@contextmanager
def readable(path: AnyPath) -> Iterator[None]:
    """Turn operating system errors about ``path`` into a sentence that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{error.filename or path} cannot be read ({reason}): give a path that you may read") from error


def left_join(chunk: Chunk, lookups: list[tuple[pl.DataFrame, str]], columns: pa.Schema) -> Chunk:
    """Append the columns of each (table, key) to the rows of a chunk; an unknown key gives nulls, never a lost row."""
    frame = pl.DataFrame(chunk.table)
    for lookup, key in lookups:
        frame = frame.join(lookup, on=key, how="left", maintain_order="left")
    if frame.height != chunk.table.num_rows:
        raise RowsLostError(
            f"{chunk.table.num_rows} rows became {frame.height} when user and item columns were appended"
        )
    table = frame.select(columns.names).to_arrow().cast(columns)
    return Chunk(table, chunk.ordinals, chunk.unparsable)
