"""Files in DuckDB's queries by their exact path: no pattern, no partition, no URI (see :mod:`thinktwice.parquet`)."""

from __future__ import annotations

import os
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

EXACT = "exact"  # protocol of paths that hold characters of DuckDB's patterns
PATTERN = frozenset("*?[]{}\\")


class ExactFiles(AbstractFileSystem):
    """Local files behind ``exact://PATH``, for DuckDB alone: it takes no pattern for a pattern there.

    DuckDB has no way to turn patterns off, and an escaped one makes it list every folder on the way, which fails where a
    folder may not be listed or has a neighbour with a backslash in its name.
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
    """A file that several threads read at once: each has a position of its own.

    DuckDB reads a place by a seek and a read, in any of its threads, and drops its files without closing them.
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
        found = os.pread(self.fileno(), size, self.tell())
        self._here.position = self.tell() + len(found)
        return found

    def __del__(self) -> None:
        self.close()


def _local(path: str) -> Path:
    return Path(path.removeprefix(f"{EXACT}://"))


def take_exact_paths(connection: duckdb.DuckDBPyConnection) -> None:
    """Let ``connection`` read every :func:`location`."""
    connection.register_filesystem(ExactFiles())


def location(path: Path | str) -> str:
    """How DuckDB is told to read the file ``path`` and no other."""
    text = str(Path(path).absolute())
    return f"{EXACT}://{text}" if PATTERN.intersection(text) else text


@contextmanager
def spill_folder(scratch: Path, name: str = ".spill") -> Iterator[str]:
    """Where DuckDB puts what does not fit into memory: below ``scratch``, unless its path holds a backslash, which DuckDB takes
    for a slash there."""
    if "\\" not in str(scratch.absolute()):
        yield str(scratch.absolute() / name)
        return
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(prefix="thinktwice-spill-", dir="/tmp" if "\\" in usual else usual) as folder:  # noqa: S108
        yield folder


def source(*paths: Path | str, options: str = "") -> str:
    """Parquet files as a table of a query. Folders ``key=value`` on the way to them are no columns."""
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
