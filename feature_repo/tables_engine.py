"""The query engine under Feast's DuckDB store, bounded like our own and closed after use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinktwice.data.query import MEMORY_LIMIT


@contextmanager
def feast_engine(scratch: Path) -> Iterator[None]:
    """Give Feast a fresh DuckDB with a memory limit that spills into ``scratch``.

    Feast reads through the default engine of ibis, which is one unbounded DuckDB for the life of the process and keeps
    every table it ever read.
    """
    import ibis

    before = ibis.options.default_backend
    backend = ibis.duckdb.connect(
        memory_limit=MEMORY_LIMIT, threads=min(os.cpu_count() or 1, 8), temp_directory=str(scratch / ".spill")
    )
    ibis.options.default_backend = backend
    try:
        yield
    finally:
        ibis.options.default_backend = before
        backend.disconnect()
