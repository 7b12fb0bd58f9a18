"""The query engine under Feast's DuckDB store, bounded like our own and closed after use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinktwice.query import MEMORY_LIMIT, location, spill_folder, take_exact_paths


@contextmanager
def feast_engine(folder: Path) -> Iterator[None]:
    """Give Feast a fresh DuckDB with a memory limit that finds the tables of the store in ``folder``.

    The registry names its tables relative to the folder, so that the folder can be moved; but Feast's DuckDB store
    would look for them below the current directory.

    Feast reads through the default engine of ibis, which is one unbounded DuckDB for the life of the process and keeps
    every table it ever read. A path is only characters: a folder ``price=7`` on the way does not replace the column.
    """
    import ibis

    before = ibis.options.default_backend
    with spill_folder(folder) as spill:
        backend = ibis.duckdb.connect(
            memory_limit=MEMORY_LIMIT, threads=min(os.cpu_count() or 1, 8), temp_directory=spill
        )
        take_exact_paths(backend.con)
        read = backend.read_parquet

        def read_in_folder(path: str, *args: Any, **kwargs: Any) -> Any:
            return read(location(folder / path), *args, hive_partitioning=False, **kwargs)

        backend.read_parquet = read_in_folder
        ibis.options.default_backend = backend
        try:
            yield
        finally:
            ibis.options.default_backend = before
            backend.disconnect()
