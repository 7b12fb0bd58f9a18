"""Queries over logs of an experiment, with specific errors for damaged and missing files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import duckdb
import pyarrow as pa

from thinktwice.errors import ExperimentError
from thinktwice.files import atomic_file
from thinktwice.parquet import num_rows, read_schema
from thinktwice.query import engine as query_engine
from thinktwice.query import quoted, source, written

MEMORY = "2GB"  # of the engine; what does not fit goes to disk

_SHARED: ContextVar[duckdb.DuckDBPyConnection | None] = ContextVar("shared", default=None)


@contextmanager
def shared_engine(scratch: Path) -> Iterator[None]:
    """Every :func:`engine` of the default memory within the block is the same one, emptied between two uses.

    For many small queries: to open an engine takes more time than they do.
    """
    with query_engine(scratch, MEMORY, ordered=False) as connection:
        token = _SHARED.set(connection)
        try:
            yield
        finally:
            _SHARED.reset(token)


@contextmanager
def engine(scratch: Path, memory: str = MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
    """:func:`thinktwice.query.engine` for logs: their rows have no order.

    Raises:
        ResourceError: memory and disk are too small, or the disk is full.
        ExperimentError: a log cannot be read.
    """
    shared = _SHARED.get() if memory == MEMORY else None
    try:
        if shared is None:
            with query_engine(scratch, memory, ordered=False) as connection:
                yield connection
            return
        token = _SHARED.set(None)  # an engine within this one is another
        try:
            yield shared
        finally:
            _SHARED.reset(token)
            _empty(shared)
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise ExperimentError(f"a log cannot be read: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # the engine's word for Ctrl-C
            raise KeyboardInterrupt from error
        raise


def _empty(connection: duckdb.DuckDBPyConnection) -> None:
    """Remove all tables and views."""
    names = connection.execute(
        "SELECT table_type = 'VIEW', table_catalog, table_schema, table_name FROM information_schema.tables "
        "WHERE table_catalog IN ('memory', 'temp')"
    ).fetchall()
    for is_view, *path in sorted(names, reverse=True):  # views first
        connection.execute(f"DROP {'VIEW' if is_view else 'TABLE'} IF EXISTS {'.'.join(map(quoted, path))}")


def write_parquet(connection: duckdb.DuckDBPyConnection, query: str, target: Path) -> None:
    """Write the rows of a query to a temporary file and rename it, without reading them into memory."""
    with atomic_file(target) as temporary:
        connection.execute(f"COPY ({query}) TO {written(temporary)} (FORMAT parquet, COMPRESSION zstd)")


def day_of(column: str) -> str:
    """SQL of the day of a time: days since 1970, UTC. (``//`` of fractions does not round down, and a cast rounds to the nearest.)"""
    return f"CAST(floor(epoch({column}) / 86400) AS INTEGER)"


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, int | float | str | None]:
    """The only row of a query, by column."""
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description or ()]
    (row,) = cursor.fetchall()
    return dict(zip(names, row, strict=True))


def parquet_table(files: Sequence[Path], columns: pa.Schema, what: str) -> str:
    """Parquet files as a table of a query, by column name; without files, an empty table of these columns.

    Raises:
        ExperimentError: a file is damaged, lacks a column, or has one of another type (null: any type will do).
    """
    nonempty = []
    for file in files:
        try:
            schema, rows = read_schema(file), num_rows(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise ExperimentError(
                f"{what} {file} cannot be read ({str(error).splitlines()[0]}): remove it or restore it"
            ) from None
        missing = [name for name in columns.names if name not in schema.names]
        if missing and not rows:
            continue  # an empty file need not have all columns
        if missing:
            why = (
                "it was written by a server without experiments"
                if missing[0].startswith("log_")
                else "correct its name"
            )
            raise ExperimentError(f"{what} {file} has no column {missing[0]!r}: {why}")
        for field in columns:
            kind = schema.field(field.name).type
            if not pa.types.is_null(field.type) and _family(kind) != _family(field.type):
                raise ExperimentError(f"{what} {file}: column {field.name!r} is {kind}, not {field.type}")
        nonempty.append(file)
    if not nonempty:
        parts = ", ".join(f"CAST(NULL AS {_SQL_TYPES[str(field.type)]}) AS {quoted(field.name)}" for field in columns)
        return f"(SELECT {parts} WHERE false)"
    return source(*nonempty, options=", union_by_name = true")


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are text."""
    return _family(kind) == "text"


def _family(kind: pa.DataType) -> str:
    """Class of types that the engine treats as equal."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = {
        "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "integer": (pa.types.is_integer,),
        "number": (pa.types.is_floating,),
        "time": (pa.types.is_timestamp,),
    }
    return next((name for name, are in tests.items() if any(is_one(kind) for is_one in are)), str(kind))


_SQL_TYPES = {
    "null": "VARCHAR",
    "string": "VARCHAR",
    "double": "DOUBLE",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint64": "UBIGINT",
    "bool": "BOOLEAN",
    "timestamp[us, tz=UTC]": "TIMESTAMPTZ",
}
