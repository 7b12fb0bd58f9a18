"""What every source of logs gives: raw columns, untouched, in chunks; and the records it could not read, with their text."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from thinktwice.errors import DataError, RowsLost, SchemaError
from thinktwice.schema import SCHEMA_FILE as SCHEMA_FILE
from thinktwice.schema import LogSchema

# The files of a raw log folder, and the columns that an ingest puts before those of the source.
LOG_FILE = "log.parquet"
UNPARSABLE_FILE = "unparsable.parquet"
SIDE_FILE = "side_unparsable.parquet"
SNAPSHOT_FILE = "snapshot.json"
SOURCE_ROW = "source_row"
ADDED = ("row_id", SOURCE_ROW)

#: Lines of user and item tables that gave no attributes; ``line`` counts from 1, as editors do.
SIDE_LINES = pa.schema([("file", pa.string()), ("line", pa.int64()), ("raw", pa.string()), ("error", pa.string())])


@dataclass(frozen=True)
class Unparsable:
    """A record that could not be split into columns: its number in the source (from 0), its text and why."""

    ordinal: int
    raw: str
    error: str


@dataclass(frozen=True)
class Chunk:
    """Some consecutive records of a source. ``ordinals`` int64 [R] numbers the R rows of ``table`` in the source."""

    table: pa.Table
    ordinals: np.ndarray
    unparsable: tuple[Unparsable, ...] = ()


@dataclass(frozen=True)
class SideLosses:
    """What user and item tables held beyond their rows: ``lines`` as :data:`SIDE_LINES`, and the counts per file."""

    lines: pa.Table
    unparsable: dict[str, int]
    duplicates: dict[str, int]  # lines whose key an earlier line has; the earlier one counts


@dataclass(frozen=True)
class Reading:
    """An opened source, not read yet.

    Attributes:
        where: names the input in messages.
        columns: the raw columns with their types.
        files: name -> SHA-256 of everything that decides the content.
        chunks: starts the reading; ordinals run on over all chunks.
        num_chunks: how many chunks to expect, for progress alone.
        side: lines of the side tables (users, items) that gave no attributes; they cost no impressions. None: no such tables.
    """

    where: str
    columns: pa.Schema
    files: dict[str, str]
    chunks: Callable[[], Iterator[Chunk]]
    num_chunks: int = 1
    side: SideLosses | None = None


@dataclass(frozen=True)
class Source:
    """One kind of input. ``open(path, limit, seed)`` looks at it and gives a :class:`Reading`."""

    name: str
    about: str
    path: Literal["none", "optional", "required"]
    path_help: str
    open: Callable[[Path | None, int, int], Reading]
    has_schema: bool = True


def known_column(name: str, columns: list[str]) -> str:
    """End of a sentence about a missing column: the nearest name, if there is one, and all that exist."""
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.6)
    listed = ", ".join(columns[:40]) + (", …" if len(columns) > 40 else "")
    return (f"did you mean {near[0]!r}? " if near else "") + f"The columns are: {listed}"


def check_columns(schema: LogSchema, columns: list[str], where: str) -> None:
    """Refuse a schema that names a column which the input does not have.

    Raises:
        SchemaError: names the column, who wants it, the nearest name and all columns found.
    """
    for wanted, role in columns_of(schema).items():
        if wanted not in columns:
            raise SchemaError(
                f"schema {schema.name!r} does not fit {where}: its {role} wants column {wanted!r}, which is not there; "
                f"correct the schema's 'column'. {known_column(wanted, columns)}"
            )


def columns_of(schema: LogSchema) -> dict[str, str]:
    """Every source column that a schema names -> what it is for, in words."""
    wanted: dict[str, str] = {}
    if schema.time.column is not None:
        wanted[schema.time.column] = "time"
    wanted[schema.label.column] = "label"
    for entity in ("user", "item"):
        key = getattr(schema.entities, entity)
        if key is not None:
            wanted.setdefault(key.source_column, f"{entity} id")
            if key.title:
                wanted.setdefault(key.title, f"{entity} title")
    for f in schema.fields:
        if f.derived is None:
            wanted.setdefault(f.source_column, f"field {f.name!r}")
    for v in schema.vectors:
        wanted.setdefault(v.source_column, f"vector {v.name!r}")
    if schema.propensity:
        wanted.setdefault(schema.propensity, "propensity")
    if schema.truth:
        wanted.setdefault(schema.truth, "truth")
    return wanted


def need_path(path: Path | None, source: str, what: str) -> Path:
    """The given path, which must exist and, if it is a folder, be readable.

    Raises:
        DataError: no path was given, nothing is there, or it may not be looked at.
    """
    if path is None:
        raise DataError(f"source {source!r} reads your own copy: give --path, {what}")
    with readable(path):
        if not path.exists():
            raise DataError(f"no such path: {path}; give --path, {what}")
        if path.is_dir():
            os.scandir(path).close()  # a folder that may not be listed would look empty
    return path


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the system's errors about ``path`` into a sentence that names it."""
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
        raise RowsLost(f"{chunk.table.num_rows} rows became {frame.height} when user and item columns were appended")
    table = frame.select(columns.names).to_arrow().cast(columns)
    return Chunk(table, chunk.ordinals, chunk.unparsable)
