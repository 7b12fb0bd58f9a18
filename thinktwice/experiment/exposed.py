"""The users that were ever exposed in an experiment, by hash: remembered beyond its end and its logs."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from thinktwice.files import atomic_file
from thinktwice.parquet import read_frame, write_frame

EXPOSED = "exposed.parquet"  # beside the record


def remember_exposed(requests: Path, path: Path, experiment: str) -> int:
    """Add the enrolled units of joined requests to those that are remembered. Returns how many there are.

    Args:
        requests: ``requests.parquet`` of a look.
        path: table with ``unit`` (keyed hash) and ``arm``; created if it does not exist.
    """
    rows = read_frame(requests).filter((pl.col("experiment") == experiment) & pl.col("unit").is_not_null())
    found = rows.select("unit", "arm")
    if path.is_file():
        found = pl.concat([read_frame(path), found])
    found = found.unique().sort("unit", "arm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        write_frame(found, temporary)
    return found.height
