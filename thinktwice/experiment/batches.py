"""Large logs are joined in batches by time, so that the join of each fits into memory and nothing is sorted on disk.

A batch is a prefix of the logs with a watermark before everything that the other logs contain; to join it is to run the collection
earlier, when no more logs were there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa

from thinktwice.experiment.join import Logs
from thinktwice.parquet import open_parquet
from thinktwice.records.served import AT

ROWS = 5_000_000  # of prediction logs in a batch; their requests take less than the memory of the engine
LINE_BYTES = 1 << 16  # of the first line of an access log that are read


@dataclass(frozen=True)
class Batch:
    """Logs, and the time up to which they are complete."""

    logs: Logs
    watermark: datetime


def in_batches(
    logs: Logs, read_access: Collection[str], read_parts: Collection[str], watermark: datetime
) -> Iterator[Batch]:
    """Batches of logs; the last has all of them and this watermark. Every batch contains the one before.

    A log belongs to the first batch unless its first time is known.

    Args:
        read_access: logs that were read before, by the hash of their first line.
        read_parts: parts that were read before, by path.
    """
    known = [path for path in logs.predictions if str(path.absolute()) in read_parts]
    found = {path: _part(path) for path in logs.predictions if path not in set(known)}
    lines = {path: _first_time(path, read_access) for path in logs.access}
    parts = sorted(found, key=lambda path: found[path].begin)
    taken, rows = list(known), 0
    for place, path in enumerate(parts):
        begin = found[path].begin
        starts = rows and rows + found[path].rows > ROWS and begin != found[parts[place - 1]].begin
        if starts and begin < watermark:
            access = [log for log in logs.access if lines[log] < begin]
            yield Batch(replace(logs, access=access, predictions=list(taken)), begin)
            rows = 0
        taken.append(path)
        rows += found[path].rows
    yield Batch(logs, watermark)


@dataclass(frozen=True)
class _Part:
    begin: datetime
    rows: int


_ALWAYS = datetime.min.replace(tzinfo=timezone.utc)


def _part(path: Path) -> _Part:
    """Rows and first time of a part of a prediction log, from its footer."""
    try:
        with open_parquet(path) as file:
            meta = file.metadata
    except (OSError, pa.ArrowInvalid):
        return _Part(_ALWAYS, 0)  # the join says what is wrong
    column = next((n for n in range(meta.num_columns) if meta.schema.column(n).path == AT), None)
    if column is None:
        return _Part(_ALWAYS, meta.num_rows)
    groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
    statistics = [group.column(column).statistics for group in groups if group.num_rows]
    times = [one.min for one in statistics if one is not None and one.has_min_max]
    whole = len(times) == len(statistics) and all(isinstance(time, datetime) and time.tzinfo for time in times)
    return _Part(min(times) if times and whole else _ALWAYS, meta.num_rows)


def _first_time(path: Path, read: Collection[str]) -> datetime:
    """Time of the first line of an access log; the earliest time of all if the log was read before, or the line has none."""
    try:
        with path.open("rb") as log:
            line = log.readline(LINE_BYTES)
        if hashlib.sha256(line).hexdigest() in read:
            return _ALWAYS
        return datetime.fromtimestamp(0, timezone.utc) + timedelta(seconds=float(json.loads(line)["ts"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return _ALWAYS
