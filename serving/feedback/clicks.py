"""Clicks of the event log as tables, for the outcome join: one of every file of the log. A file that is complete is read once."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa

from serving.feedback.event_log import read_file, segment_file, segments
from serving.feedback.records import Record, from_json
from thinktwice.errors import DataError
from thinktwice.files import atomic_file
from thinktwice.parquet import parquet_writer
from thinktwice.records.events import CLICK_COLUMNS

IS_CLICK = (
    b'{"kind":"click"'  # how the record of a click begins; only clicks are parsed, the checksum of all is checked
)
GROWING = "clicks-open.parquet"  # table of the newest file of the log, which is not complete
ROWS = 100_000  # rows per row group
VERSION = 1  # of the tables: those of another one are written again


def write_clicks(events: Path, folder: Path) -> tuple[list[Path], datetime | None]:
    """Write the clicks of an event log as parquet files with ``CLICK_COLUMNS``; the service may go on writing the log.

    The table of a complete file of the log is kept, and named by the size and time of that file: as long as these are the same it is
    used again.

    Args:
        folder: of the tables; nothing else is in it.

    Returns:
        The tables, and the time of the last record: events accepted before it are all in the log. None for an empty log.

    Raises:
        DataError: there is no log, or a file of it is missing or damaged.
        ResourceError: the disk is full.
    """
    if not events.is_dir():
        raise DataError(f"there is no event log {events}: `thinktwice feedback run` writes it, or correct --log")
    folder.mkdir(parents=True, exist_ok=True)
    tables, last = [], 0
    newest = max(segments(events), default=-1)
    for number in range(newest + 1):
        key = _key(events, number)
        kept = next(folder.glob(f"{key}-*.parquet"), None) if number < newest else None
        if kept is None:
            kept, at = _write(events, number, folder, None if number == newest else key)
        else:
            at = int(kept.stem.rpartition("-")[2])
        tables.append(kept)
        last = at or last
    for left in set(folder.iterdir()) - set(tables):
        left.unlink()
    return tables, datetime.fromtimestamp(last / 1e6, timezone.utc) if last else None


def _key(events: Path, number: int) -> str:
    """Name of the table of a file as it is now, but for the time of the last record."""
    try:
        found = segment_file(events, number).stat()
    except FileNotFoundError:
        return f"missing-{number}"  # the log says so when it is read
    return f"clicks-v{VERSION}-{number:010d}-{found.st_size}-{found.st_mtime_ns}"


def _write(events: Path, number: int, folder: Path, key: str | None) -> tuple[Path, int]:
    """Write the clicks of one file. Returns the table and the time of the last record in microseconds, 0 if there is none.

    Args:
        key: of :func:`_key`; None: the file is not complete, so the table is not kept.
    """
    target, last = folder / GROWING, b""
    with atomic_file(target) as temporary, parquet_writer(temporary, CLICK_COLUMNS, compression="zstd") as writer:
        clicks: list[Record] = []
        for bodies in read_file(events, number):
            last = bodies[-1]
            clicks += [from_json(body) for body in bodies if body.startswith(IS_CLICK)]
            if len(clicks) >= ROWS:
                writer.write_table(_table(clicks))
                clicks = []
        writer.write_table(_table(clicks))
    at = from_json(last).at if last else 0
    if key is not None:
        target = target.rename(folder / f"{key}-{at}.parquet")
    return target, at


def _table(clicks: list[Record]) -> pa.Table:
    columns = {
        "request_id": [click.request_id for click in clicks],
        "item_id": [click.item_id for click in clicks],
        "at": [click.time for click in clicks],
        "received_at": [click.at for click in clicks],
    }
    return pa.table(columns, schema=CLICK_COLUMNS)
