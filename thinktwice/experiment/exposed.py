"""The users that were ever exposed in an experiment, by hash: remembered beyond its end and its logs.

A damaged table is set aside, and made again from the users of all requests that the looks have joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from thinktwice.experiment.kept import set_aside
from thinktwice.files import atomic_file
from thinktwice.parquet import read_table, write_table

EXPOSED = "exposed.parquet"  # beside the record


def remember_exposed(requests: Sequence[Path], path: Path, experiment: str) -> int:
    """Add the enrolled units of joined requests to those that are remembered. Returns how many there are.

    Args:
        requests: tables of all enrolled units, see :attr:`thinktwice.experiment.looks.LookJoined.requests`.
        path: table with ``unit`` (keyed hash) and ``arm``; created if it does not exist.
    """
    tables = [read_table(table, ["experiment", "unit", "arm"]) for table in requests]
    rows = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables])
    found = rows.filter((pl.col("experiment") == experiment) & pl.col("unit").is_not_null()).select("unit", "arm")
    if (before := _remembered(path)) is not None:
        found = pl.concat([before, found])
    found = found.unique().sort("unit", "arm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        write_table(found.to_arrow(), temporary, write_page_checksum=True)
    return found.height


def _remembered(path: Path) -> pl.DataFrame | None:
    """What is remembered; None if there is nothing, or it was damaged and is set aside now."""
    if not path.is_file():
        return None
    try:
        return pl.DataFrame(pl.from_arrow(read_table(path, ["unit", "arm"], checked=True)))
    except (OSError, ValueError, KeyError):  # of arrow: damaged pages or footer, columns that are missing
        set_aside(path.parent, [path.name], path.parent / "damaged")
        return None
