"""The query engine, DuckDB: bounded memory, UTC, quoted names, and files by their exact path.

A path is never a pattern, a partition or a URI (see :mod:`thinktwice.parquet`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any

import duckdb
from fsspec import AbstractFileSystem

from thinktwice.errors import ResourceError

MEMORY_LIMIT = "1GB"  # of the query engine; what does not fit goes to disk
EXACT = "exact"  # protocol of paths that contain characters of DuckDB's patterns
PATTERN = frozenset("*?[]{}\\")


class ExactFiles(AbstractFileSystem):
    """Local files as ``exact://PATH``, for DuckDB only, which does not expand patterns there.

    DuckDB cannot disable patterns, and an escaped one makes it list every folder of the path, which fails if a folder is
    not readable or a sibling has a backslash in its name.
    """

    protocol = EXACT
    cachable = False

    def glob(self, path: str, maxdepth: int | None = None, **_: Any) -> list[str]:
        return [path]

    def exists(self, path: str, **_: Any) -> bool:
        return _local(path).exists()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": _local(path).stat().st_size, "type": "file"}

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(_local(path).stat().st_mtime, timezone.utc)

    def open(self, path: str, mode: str = "rb", **_: Any) -> FileIO:
        return _OpenedFile(_local(path), mode)


class _OpenedFile(FileIO):
    """A file that several threads read at once, each with its own position.

    DuckDB reads by a seek and a read, in any of its threads, and drops files without closing them.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._here = threading.local()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: os.fstat(self.fileno()).st_size}[whence]
        self._here.position = start + offset
        return start + offset

    def tell(self) -> int:
        return int(getattr(self._here, "position", 0))

    def read(self, size: int | None = -1) -> bytes:
        size = os.fstat(self.fileno()).st_size if size is None or size < 0 else size
        data = os.pread(self.fileno(), size, self.tell())
        self._here.position = self.tell() + len(data)
        return data

    def __del__(self) -> None:
        self.close()


def _local(path: str) -> Path:
    return Path(path.removeprefix(f"{EXACT}://"))


def take_exact_paths(connection: duckdb.DuckDBPyConnection) -> None:
    """Let ``connection`` read every :func:`location`."""
    connection.register_filesystem(ExactFiles())


def location(path: Path | str) -> str:
    """The name under which DuckDB reads exactly the file ``path``."""
    text = str(Path(path).absolute())
    return f"{EXACT}://{text}" if PATTERN.intersection(text) else text


@contextmanager
def spill_folder(scratch: Path) -> Iterator[str]:
    """A folder for spilled data, removed afterwards.

    It is below ``scratch``, unless that path contains a backslash: DuckDB reads it as a slash.
    """
    if "\\" not in str(scratch.absolute()):
        folder = str(scratch.absolute() / f".spill-{os.getpid()}")
        try:
            yield folder  # DuckDB creates it on demand
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="thinktwice-spill-", dir="/tmp" if "\\" in usual else usual) as folder:  # noqa: S108
        yield folder


@contextmanager
def engine(scratch: Path, memory: str = "", *, ordered: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection of bounded memory that spills into a folder below ``scratch``.

    Args:
        memory: the limit, by default :data:`MEMORY_LIMIT`.
        ordered: results keep the order of the rows they are read from; False needs less memory.

    Raises:
        ResourceError: memory and disk are too small, or the disk is full.
    """
    with spill_folder(scratch) as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory or MEMORY_LIMIT,
            "threads": str(min(os.cpu_count() or 1, 8)),
            "temp_directory": spill,
            "preserve_insertion_order": ordered,
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
            if "File too large" in str(error):
                raise ResourceError(
                    f"a file is too large while writing {scratch}: raise the limit on the size of files (ulimit -f)"
                ) from error
            raise
        finally:
            connection.close()


def one_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The row of a query that has exactly one.

    The whole result is fetched: ``fetchone`` leaves it open, and a connection with an open result refuses the next relation.
    """
    (row,) = connection.execute(query).fetchall()
    return tuple(row)


def source(*paths: Path | str, options: str = "") -> str:
    """Parquet files as a table of a query. Folders ``key=value`` in their paths do not become columns."""
    return f"read_parquet({listed(*paths)}, hive_partitioning = false{options})"


def listed(*paths: Path | str) -> str:
    """Files as an SQL list of literals, for the functions of DuckDB that read files."""
    return f"[{', '.join(literal(location(path)) for path in paths)}]"


def written(path: Path | str) -> str:
    """The file that ``COPY ... TO`` writes, as an SQL literal."""
    return literal(str(Path(path).absolute()))


def literal(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
