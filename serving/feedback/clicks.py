"""Clicks of the event log as a table, for the outcome join."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa

from serving.feedback.event_log import read_bodies
from serving.feedback.records import Record, from_json
from thinktwice.errors import DataError
from thinktwice.files import atomic_file
from thinktwice.parquet import parquet_writer
from thinktwice.records.events import CLICK_COLUMNS

IS_CLICK = (
    b'{"kind":"click"'  # how the record of a click begins; only clicks are parsed, the checksum of all is checked
)
ROWS = 100_000  # rows per row group


def write_clicks(events: Path, target: Path) -> datetime | None:
    """Write the clicks of an event log as a parquet file with ``CLICK_COLUMNS``; the service may go on writing the log.

    Returns:
        The time of the last record: events accepted before it are all in the log. None for an empty log.

    Raises:
        DataError: there is no log, or a file of it is damaged.
        ResourceError: the disk is full.
    """
    if not events.is_dir():
        raise DataError(f"there is no event log {events}: `thinktwice feedback run` writes it, or correct --log")
    last = b""
    with atomic_file(target) as temporary, parquet_writer(temporary, CLICK_COLUMNS, compression="zstd") as writer:
        clicks: list[Record] = []
        for bodies in read_bodies(events):
            last = bodies[-1]
            clicks += [from_json(body) for body in bodies if body.startswith(IS_CLICK)]
            if len(clicks) >= ROWS:
                writer.write_table(_table(clicks))
                clicks = []
        writer.write_table(_table(clicks))
    return datetime.fromtimestamp(from_json(last).at / 1e6, timezone.utc) if last else None


def _table(clicks: list[Record]) -> pa.Table:
    columns = {
        "request_id": [click.request_id for click in clicks],
        "item_id": [click.item_id for click in clicks],
        "at": [click.time for click in clicks],
        "received_at": [click.at for click in clicks],
    }
    return pa.table(columns, schema=CLICK_COLUMNS)
