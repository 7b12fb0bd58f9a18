"""Query engine of Feast's DuckDB store, with the limits of our own engine and closed after use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinktwice.query import MEMORY_LIMIT, location, spill_folder, take_exact_paths


@contextmanager
def feast_engine(folder: Path) -> Iterator[None]:
    """Provide Feast with a new DuckDB with a memory limit that finds the tables of the store in ``folder``.

    The registry stores table paths relative to the folder, so that the folder can be moved, but Feast's DuckDB store would resolve
    them against the current directory.

    By default Feast uses the default engine of ibis, a DuckDB without limits that lives as long as the process and keeps every
    table it has read. Paths are taken literally: a parent folder ``price=7`` does not replace the column.
    """
    import ibis

    previous_backend = ibis.options.default_backend
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
            ibis.options.default_backend = previous_backend
            backend.disconnect()
