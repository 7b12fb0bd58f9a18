"""Closed requests: all logs are complete for them, so what is known of them is kept and their rows are not read again.

Everything that the joins say about a request depends on the lines, rows and clicks of its id alone. Counts and sums of closed and of
open requests therefore add up to those of a join of all logs. A closed request that turns up again (an id that was used again, a part
that was written late) raises :class:`StartOverError`, and all logs are joined from the beginning.
"""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from thinktwice.errors import ExperimentError
from thinktwice.experiment.join import EXPOSURES, LINE_COLUMNS
from thinktwice.experiment.query import engine, parquet_table, write_parquet
from thinktwice.query import literal, quoted
from thinktwice.records.exposure import SHADOW
from thinktwice.records.served import AT, ITEM, PLACE, PREDICTION_COLUMNS, REQUEST

LINES, ROWS = "lines.parquet", "rows.parquet"
GRACE = timedelta(
    hours=1
)  # for which a request waits, after its logs are complete, for a line or a row that is missing
CHUNK = 1 << 20

SHOWN_COLUMNS = pa.schema([PREDICTION_COLUMNS.field(name) for name in (REQUEST, ITEM, PLACE, AT)])


class StartOverError(Exception):
    """What was kept does not fit the logs."""


@dataclass(frozen=True)
class Waits:
    """How long a request stays open, by the last time that a line or row of it has.

    Attributes:
        until: a request with a line and a row is closed up to here.
        alone: and one that has only one of them up to here.
        rows_since: lines before it can have no row, and wait for none.
    """

    until: datetime
    alone: datetime
    rows_since: datetime | None = None


@dataclass(frozen=True)
class NewLines:
    """What access logs have beyond the bytes that were read before.

    Attributes:
        read: bytes read of every log that is there, by the hash of its first line; empty if the next run must start over.
        whole: copy of the whole new lines.
        tails: copies of the unfinished last lines.
    """

    read: dict[str, int]
    whole: Path
    tails: list[Path]


def new_lines(logs: Sequence[Path], read: Mapping[str, int], out: Path) -> NewLines:
    """Copy what is new in access logs into ``out``.

    A log is known by its first line, whatever its name: the current one is renamed when it is rotated.

    Raises:
        ExperimentError: a log is missing.
        StartOverError: a log is shorter than it was, or two logs begin alike.
    """
    found, tails, twice = dict[str, int](), list[Path](), False
    lines = out / "lines.log"
    with lines.open("wb") as target:
        for number, path in enumerate(logs):
            if not path.is_file():
                raise ExperimentError(f"no access log {path}")
            with path.open("rb") as source:
                first = source.readline()
                name = hashlib.sha256(first).hexdigest()
                start = read.get(name, 0) if first.endswith(b"\n") else 0
                if name in found:  # two logs begin alike: which is which cannot be known by the next run
                    twice = True
                    if read:
                        raise StartOverError
                if path.stat().st_size < start:
                    raise StartOverError
                source.seek(start)
                rest = b""
                while chunk := source.read(CHUNK):
                    whole, end, rest = (rest + chunk).rpartition(b"\n")
                    target.write(whole + end)
                    start += len(whole + end)
            if first.endswith(b"\n"):
                found[name] = start
            if rest:
                tail = out / f"tail-{number:06d}.log"
                tail.write_bytes(rest)
                tails.append(tail)
    return NewLines({} if twice else found, lines, tails)


@dataclass(frozen=True)
class Requests:
    """Tables of lines and rows.

    Attributes:
        fresh_lines, fresh_rows: those that no earlier run has read.
        tails: unfinished last lines, which every run reads again: their requests stay open.
        lines, rows: the fresh ones, and those of open requests that earlier runs have read.
        ids: of closed requests.
    """

    fresh_lines: Sequence[Path]
    tails: Sequence[Path]
    fresh_rows: Sequence[Path]
    lines: Sequence[Path]
    rows: Sequence[Path]
    ids: Sequence[Path]


def close_requests(db: duckdb.DuckDBPyConnection, found: Requests, waits: Waits, clicks: str | None = None) -> None:
    """Create the tables ``ended`` (ids of requests that are closed now) and ``old`` (ids of closed requests that are asked for).

    Args:
        clicks: table of clicks, whose requests are asked for.

    Raises:
        StartOverError: a closed request has a new line or row.
    """
    lines, rows = (_lines(found.lines), _rows(found.rows))
    read_now = _lines([*found.fresh_lines, *found.tails])
    fresh = f"SELECT request_id AS id FROM {read_now} UNION SELECT {REQUEST} FROM {_rows(found.fresh_rows)}"
    db.execute(f"CREATE TEMP TABLE fresh AS SELECT id FROM ({fresh}) WHERE id IS NOT NULL")
    clicked = "" if clicks is None else f" UNION SELECT request_id FROM {clicks} WHERE request_id IS NOT NULL"
    # Closed requests are many, and those that are asked for are few.
    db.execute(f"""
        CREATE TEMP TABLE old AS
        SELECT DISTINCT {REQUEST} AS id FROM {parquet_table(found.ids, _IDS, "ids")} WHERE {REQUEST} IN (FROM fresh{clicked})
    """)
    if db.execute("SELECT 1 FROM fresh WHERE id IN (FROM old) LIMIT 1").fetchall():
        raise StartOverError
    since = waits.rows_since
    rowless = "false" if since is None else f"seen_at < {_epoch(since)}"
    db.execute(f"""
        CREATE TEMP TABLE ended AS
        SELECT id FROM (
            SELECT request_id AS id, coalesce(ts, 0) AS seen_at, 1 AS line, false AS copied
            FROM {lines} WHERE request_id IS NOT NULL
            UNION ALL SELECT {REQUEST}, coalesce(epoch({AT}), 0), 0, coalesce({SHADOW}, false)
            FROM {rows} WHERE {REQUEST} IS NOT NULL)
        WHERE id NOT IN (SELECT request_id FROM {_lines(found.tails)} WHERE request_id IS NOT NULL)
        GROUP BY id
        HAVING max(seen_at) <= {_epoch(waits.until)} AND ((bool_or(line = 1) AND bool_or(line = 0)) OR bool_and(copied)
            OR bool_and({rowless}) OR max(seen_at) <= {_epoch(waits.alone)})
    """)


def write_closed(db: duckdb.DuckDBPyConnection, found: Requests, closed: Path, opened: Path) -> None:
    """Write the lines of ``ended`` requests to ``closed``, and lines and rows of all others to ``opened``.

    Lines without an id belong to no request, and are counted once; rows without one are counted nowhere.
    """
    lines, rows = _lines(found.lines), _rows(found.rows)
    ended = "request_id IS NULL OR request_id IN (FROM ended)"
    write_parquet(db, f"SELECT * FROM {lines} WHERE {ended}", closed / LINES)
    write_parquet(db, f"SELECT * FROM {lines} WHERE NOT ({ended})", opened / LINES)
    others = f"{REQUEST} IS NOT NULL AND {REQUEST} NOT IN (FROM ended)"
    write_parquet(db, f"SELECT * FROM {rows} WHERE {others}", opened / ROWS)


def write_closed_rows(db: duckdb.DuckDBPyConnection, found: Requests, target: Path) -> None:
    """Write the rows of ``ended`` requests."""
    write_parquet(db, f"SELECT * FROM {_rows(found.rows)} WHERE {REQUEST} IN (FROM ended)", target)


def write_closed_ids(closed: Path, target: Path) -> None:
    """Write the ids of the requests of :func:`write_closed`, with their exposures if they have any."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(quoted(field.name) for field in SHOWN_COLUMNS)
    shown = parquet_table([closed / EXPOSURES], SHOWN_COLUMNS, "exposures")
    with engine(closed) as db:
        write_parquet(
            db,
            f"""SELECT {names} FROM {shown} UNION ALL
                SELECT DISTINCT id, NULL::VARCHAR, NULL::INTEGER, NULL::TIMESTAMPTZ FROM (
                    SELECT request_id AS id FROM {_lines([closed / LINES])}
                    UNION ALL SELECT {REQUEST} FROM {_rows([closed / ROWS])})
                WHERE id IS NOT NULL AND id NOT IN (SELECT {REQUEST} FROM {shown} WHERE {REQUEST} IS NOT NULL)""",
            target,
        )


_IDS = pa.schema([PREDICTION_COLUMNS.field(REQUEST)])


def _lines(files: Sequence[Path]) -> str:
    return parquet_table(files, LINE_COLUMNS, "lines")


def _rows(files: Sequence[Path]) -> str:
    return parquet_table(files, PREDICTION_COLUMNS, "prediction log")


def _epoch(time: datetime) -> str:
    return f"epoch(TIMESTAMPTZ {literal(time.isoformat())})"
