"""Source that reads a raw log folder as written by an ingest or the simulator.

Its records keep their order, broken ones included, and are renumbered.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from thinktwice.data.reading import (
    ADDED,
    LOG_FILE,
    SCHEMA_FILE,
    SIDE_FILE,
    SIDE_LINES,
    SNAPSHOT_FILE,
    SOURCE_ROW,
    UNPARSABLE_FILE,
    Chunk,
    Reading,
    SideLosses,
    Unparsable,
)
from thinktwice.data.sources.parquet_files import BATCH_ROWS, batches, footer
from thinktwice.errors import DataError
from thinktwice.files import read_json, sha256_file
from thinktwice.parquet import read_table


def is_raw_log(path: Path) -> bool:
    """Whether ``path`` is a folder that an ingest wrote, by its ``snapshot.json`` (other tools may write a file of that
    name)."""
    if not (path / SNAPSHOT_FILE).is_file():
        return False
    try:
        info = read_json(path / SNAPSHOT_FILE)
    except (OSError, ValueError):
        return (path / LOG_FILE).is_file()
    return (path / LOG_FILE).is_file() or (isinstance(info, dict) and "snapshot_id" in info)


def schema_beside(path: Path) -> Path | None:
    """The schema file of the raw log folder ``path``; None if it is not such a folder."""
    return path / SCHEMA_FILE if is_raw_log(path) else None


def open_raw_log(folder: Path) -> Reading:
    """Open a raw log folder; its columns are those of the original source, without row ids.

    Raises:
        DataError: a file is missing or damaged, or the folder does not match its ``snapshot.json``.
    """
    log = folder / LOG_FILE
    if not log.is_file():
        raise DataError(f"{folder} is a raw log folder without its {LOG_FILE}: ingest or simulate the log again")
    num_rows, schema = footer(log)
    if SOURCE_ROW not in schema.names:
        raise DataError(f"{log} has no column {SOURCE_ROW!r}: ingest or simulate the log again")
    columns = pa.schema([f for f in schema if f.name not in ADDED])
    info = _snapshot(folder)
    broken = _table(folder / UNPARSABLE_FILE, (SOURCE_ROW, "raw", "error"))
    for name, count in (("rows", num_rows), ("unparsable_rows", broken.num_rows)):
        if info.get(name, count) != count:
            raise DataError(
                f"{folder} contains {count} {name.replace('_', ' ')} but its {SNAPSHOT_FILE} says {info[name]}: "
                "ingest or simulate the log again"
            )
    files = {f.name: sha256_file(f) for f in (log, folder / UNPARSABLE_FILE, folder / SIDE_FILE) if f.is_file()}
    num_chunks = max(1, -(-num_rows // BATCH_ROWS))
    return Reading(str(folder), columns, files, lambda: _chunks(log, columns, broken), num_chunks, _side(folder, info))


def _chunks(log: Path, columns: pa.Schema, broken: pa.Table) -> Iterator[Chunk]:
    """Rows and broken records merged by their original numbers. ``broken``: source_row, raw, error."""
    broken = broken.sort_by(SOURCE_ROW)
    broken_rows = broken.column(SOURCE_ROW).to_numpy()
    texts, errors = broken.column("raw").to_pylist(), broken.column("error").to_pylist()
    rows, reported, last = 0, 0, -1
    for batch in batches(log):
        table = pa.Table.from_batches([batch])
        old = table.column(SOURCE_ROW).to_numpy()
        if len(old) and not (old[0] > last and bool((np.diff(old) > 0).all())):
            raise DataError(
                f"the rows of {log} are not in the order of {SOURCE_ROW!r}: ingest or simulate the log again"
            )
        last = int(old[-1]) if len(old) else last
        earlier = np.searchsorted(broken_rows, old)  # broken records before each row
        ordinals = np.arange(rows, rows + len(old), dtype=np.int64) + earlier
        until = int(np.searchsorted(broken_rows, last))
        between = tuple(
            Unparsable(i + rows + int(np.searchsorted(old, broken_rows[i])), texts[i], errors[i])
            for i in range(reported, until)
        )
        rows, reported = rows + len(old), until
        yield Chunk(table.select(columns.names).cast(columns), ordinals, between)
    trailing = tuple(Unparsable(i + rows, texts[i], errors[i]) for i in range(reported, len(broken_rows)))
    if trailing:
        yield Chunk(columns.empty_table(), np.zeros(0, np.int64), trailing)


def _snapshot(folder: Path) -> dict[str, object]:
    path = folder / SNAPSHOT_FILE
    try:
        info = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): ingest or simulate the log again") from error
    if not isinstance(info, dict):
        raise DataError(f"{path} contains no description of a log: ingest or simulate the log again")
    return info


def _table(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """These columns of a small parquet file beside the log; empty without such a file."""
    if not path.is_file():
        return pa.schema([(c, pa.int64() if c in (SOURCE_ROW, "line") else pa.string()) for c in columns]).empty_table()
    _, schema = footer(path)
    lacking = [c for c in columns if c not in schema.names]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]!r}: ingest or simulate the log again")
    return read_table(path, columns)


def _side(folder: Path, info: dict[str, object]) -> SideLosses | None:
    """Lost lines of the original source's side tables."""
    if not (folder / SIDE_FILE).is_file():
        return None
    counts = [info.get(name) for name in ("side_unparsable", "side_duplicates")]
    unparsable, duplicates = (dict(c) if isinstance(c, dict) else {} for c in counts)
    return SideLosses(_table(folder / SIDE_FILE, tuple(SIDE_LINES.names)).cast(SIDE_LINES), unparsable, duplicates)
