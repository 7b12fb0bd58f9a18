"""DuckDB as the query engine of the library: bounded memory, UTC, quoted names, exact paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from thinktwice.errors import ResourceError
from thinktwice.sql_files import literal as literal
from thinktwice.sql_files import source as source
from thinktwice.sql_files import spill_folder, take_exact_paths
from thinktwice.sql_files import written as written

MEMORY_LIMIT = "1GB"  # of the query engine; what does not fit goes to disk


@contextmanager
def engine(scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection of bounded memory that spills into ``scratch``; a full disk is named."""
    with spill_folder(scratch) as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "threads": str(min(os.cpu_count() or 1, 8)),
            "temp_directory": spill,
        }
        connection = duckdb.connect(":memory:", config=settings)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            take_exact_paths(connection)
            yield connection
        except duckdb.OutOfMemoryException as error:
            raise ResourceError(
                f"memory and disk under {scratch} are too small for the intermediate data: free some disk space and run again"
            ) from error
        except duckdb.IOException as error:
            if "No space left" in str(error):
                raise ResourceError(
                    f"no space left while writing {scratch}: free some disk space and run again"
                ) from error
            raise
        finally:
            connection.close()


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The row of a query that has exactly one.

    All of the result is fetched: ``fetchone`` leaves it open, and a connection with an open result refuses the next relation.
    """
    (row,) = connection.execute(query).fetchall()
    return tuple(row)


def quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
