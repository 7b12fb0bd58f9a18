"""The join of a running experiment, look by look: a look reads what is new in the logs, and what is not final yet.

Everything that the joins say about a request depends on the lines, rows and clicks of its id alone. A request is *closed* when all logs
are complete for it and the windows of its exposures have ended: its sums per unit, its counts and its id are kept, and its rows are not read
again. All other requests are *open* and are joined at every look. What is known at a look is the sum over closed and open requests, and
equals a join of all logs from the beginning, to the last bit.

What is kept lies in the folder of the look that wrote it, and is never changed. ``looks.json`` names that folder and is written last, so a
look that is killed leaves the state before it. It also has the sizes of all files: one that is missing or cut off starts over.

New lines or rows of a closed request (an id that was used again, a part that was written late) start over from the beginning. Clicks on closed
requests are late, and are counted as such.
"""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import AwareDatetime, ValidationError

from thinktwice.errors import ExperimentError
from thinktwice.experiment.added_counts import SEEN_COLUMNS, added, added_outcomes, clicks_alone, with_units
from thinktwice.experiment.assignment import BucketLayout
from thinktwice.experiment.exposures import sole_writer
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.gather import Joined, Sources, widest_layout
from thinktwice.experiment.join import (
    EXPOSURES,
    LINE_COLUMNS,
    REQUESTS,
    JoinCounts,
    Logs,
    join_exposures,
    write_lines,
    wrong_buckets,
)
from thinktwice.experiment.outcomes import OUTCOMES, OutcomeCounts, Window, join_outcomes
from thinktwice.experiment.query import engine, parquet_table, write_parquet
from thinktwice.experiment.unit_sums import add_sums, write_unit_sums
from thinktwice.files import read_json, sha256_text, write_json
from thinktwice.frozen import Frozen
from thinktwice.parquet import num_rows
from thinktwice.query import literal, quoted
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.records.exposure import SHADOW
from thinktwice.records.served import AT, ITEM, PLACE, PREDICTION_COLUMNS, REQUEST

LOOK = "look"  # folder beside the record
STATE = "looks.json"
LINES, ROWS, CLICKS, IDS = "lines.parquet", "rows.parquet", "clicks.parquet", "ids"
OPEN, CLOSED, SEEN = "open", "closed", "units-seen.parquet"
GRACE = timedelta(hours=1)  # for which a request waits, after it is final, for a line or a row that is missing
CHUNK = 1 << 20

SHOWN_COLUMNS = pa.schema([PREDICTION_COLUMNS.field(name) for name in (REQUEST, ITEM, PLACE, AT)])


class _Kept(Frozen):
    """Content of ``looks.json``.

    Attributes:
        key: of everything that a join depends on but the logs.
        number: of the look; its files are in the folder of that name.
        access: bytes that were read of every access log, by the hash of its first line.
        parts: size of every part of a prediction log that was read, by path.
        clicks: the same of every table of clicks.
        exposures, outcomes: counts of closed requests. Counts of distinct units are computed from files.
        wrong: hashes of closed units with a wrong bucket.
        first: time of the first closed exposure.
        files: size of every kept file, by its path within the folder.
    """

    format: Literal[2] = 2  # another format starts over
    key: str
    number: int
    watermark: AwareDatetime
    access: dict[str, int]
    parts: dict[str, int]
    clicks: dict[str, int]
    exposures: JoinCounts | None
    outcomes: OutcomeCounts | None
    wrong: tuple[str, ...]
    first: AwareDatetime | None
    files: dict[str, int]


@dataclass(frozen=True)
class LookJoined:
    """A look.

    Attributes:
        folders: of open and of closed requests, each with sums per unit and latencies.
        requests: tables of enrolled requests that are new or open.
        from_start: whether all logs were read.
    """

    joined: Joined
    folders: tuple[Path, ...]
    requests: tuple[Path, ...]
    from_start: bool


class _StartOverError(Exception):
    """The kept state does not fit the logs."""


def join_look(file: ExperimentFile, sources: Sources, folder: Path, *, at: datetime, window: Window) -> LookJoined:
    """Join what is new since the last look, and keep the result in ``folder``.

    Args:
        at: time up to which all logs are complete.

    Raises:
        ExperimentError: a log is missing or damaged, or another look is in progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = widest_layout(file, sources.others)
    content = (file.slices, repr(layout), window.model_dump_json(), sources.logs.unit_column)
    key = sha256_text(repr(content))
    with sole_writer(folder):
        kept = _read(folder, key, at)
        if kept is not None:
            try:
                return _look(file, sources, folder, kept, layout, at, window, from_start=False)
            except _StartOverError:
                pass
        empty = _Kept(
            key=key, number=0, watermark=at, access={}, parts={}, clicks={}, exposures=None, outcomes=None, wrong=(), first=None,
            files={},
        )  # fmt: skip
        shutil.rmtree(folder / IDS, ignore_errors=True)
        return _look(file, sources, folder, empty, layout, at, window, from_start=True)


def _read(folder: Path, key: str, at: datetime) -> _Kept | None:
    """What the last look kept; None if it does not fit this one."""
    if not (folder / STATE).is_file():
        return None
    try:
        kept = _Kept.model_validate(read_json(folder / STATE))
    except (OSError, ValueError, ValidationError):
        return None  # all logs are read again
    complete = bool(kept.access) and kept.files == _sizes(folder, kept.number)
    return kept if complete and kept.key == key and kept.watermark <= at else None


def _sizes(folder: Path, number: int) -> dict[str, int]:
    """Sizes of the files that the look after this one reads."""
    here = folder / str(number)
    ids = [path for path in (folder / IDS).glob("*.parquet") if int(path.stem) <= number]
    kept = [
        *(here / name for name in (LINES, ROWS, CLICKS)),
        *(here / CLOSED / "all").glob("*"),
        here / CLOSED / SEEN,
        *ids,
    ]
    return {str(path.relative_to(folder)): path.stat().st_size for path in kept if path.is_file()}


def _look(
    file: ExperimentFile, sources: Sources, folder: Path, kept: _Kept, layout: BucketLayout, at: datetime, window: Window, *,
    from_start: bool,
) -> LookJoined:  # fmt: skip
    number = kept.number + 1
    here, before = folder / str(number), folder / str(kept.number)
    if from_start:
        for left in folder.iterdir():
            if left.is_dir() and left.name.isdigit():
                shutil.rmtree(left)
    shutil.rmtree(here, ignore_errors=True)
    for name in (OPEN, CLOSED, "new"):
        (here / name).mkdir(parents=True)
    carried = [] if from_start else [before]

    access, tails = _new_lines(sources.logs.access, kept.access, here / "new")
    parts = {str(path): path.stat().st_size for path in sources.logs.predictions}
    clicks = {str(path): path.stat().st_size for path in sources.clicks}
    for now, then in ((parts, kept.parts), (clicks, kept.clicks)):
        if any(now.get(path, size) != size for path, size in then.items()):
            raise _StartOverError
    new_parts = [path for path in sources.logs.predictions if str(path) not in kept.parts]
    new_clicks = [path for path in sources.clicks if str(path) not in kept.clicks]
    write_lines([here / "new" / "lines.log"], here / "new" / LINES)
    write_lines(tails, here / "new" / "tails.parquet")
    ids = [path for path in sorted((folder / IDS).glob("*.parquet")) if int(path.stem) <= kept.number]

    split = _Split(
        lines=[here / "new" / LINES, *(c / LINES for c in carried)],
        rows=[*new_parts, *(c / ROWS for c in carried)],
        clicks=[*new_clicks, *(c / CLICKS for c in carried)],
        ids=ids,
    )
    fresh = _Split(
        lines=[here / "new" / LINES, here / "new" / "tails.parquet"], rows=new_parts, clicks=new_clicks, ids=ids
    )
    final = at - timedelta(seconds=window.seconds + window.late_seconds)
    _separate(split, fresh, here, final, sources.rows_since)

    closed_logs = Logs([], [here / CLOSED / ROWS], sources.logs.unit_column, [here / CLOSED / LINES])
    open_logs = Logs(tails, [here / ROWS], sources.logs.unit_column, [here / LINES])
    exposures, wrong = [], set(kept.wrong)
    for logs, out in ((closed_logs, here / CLOSED), (open_logs, here / OPEN)):
        exposures.append(join_exposures(logs, layout, out, watermark=at))
        found = wrong_buckets(logs, layout, here)
        if out.name == CLOSED:
            wrong |= {_hashed(pair) for pair in found}
            all_wrong = set(wrong)
        else:
            all_wrong = wrong | {_hashed(pair) for pair in found}

    first = _first([here / CLOSED / EXPOSURES], kept.first)
    first_of_all = _first([here / OPEN / EXPOSURES], first)
    if kept.first is not None and first_of_all is not None and first_of_all < kept.first:
        raise _StartOverError  # clicks of other times were counted against a later first exposure
    outcomes = []
    for out, clicked in ((here / CLOSED, here / CLOSED / CLICKS), (here / OPEN, here / CLICKS)):
        outcomes.append(join_outcomes([out / EXPOSURES], [clicked], out, at, window, first=first_of_all))
        write_unit_sums([out / OUTCOMES], [out / REQUESTS], out, file.slices)
    late_clicks = [here / "new" / CLICKS]
    late = join_outcomes(
        ids if num_rows(late_clicks[0]) else [], late_clicks, here / "new", at, window, first=first_of_all
    )
    if late.matched or late.pending:
        raise _StartOverError  # a click without the time at which it was received

    _keep_ids(here, folder / IDS / f"{number:06d}.parquet")
    add_sums([here / CLOSED, *(c / CLOSED / "all" for c in carried)], here / CLOSED / "all")
    seen = parquet_table([here / CLOSED / REQUESTS, *(c / CLOSED / SEEN for c in carried)], SEEN_COLUMNS, "requests")
    with engine(here) as db:
        write_parquet(db, f"SELECT DISTINCT experiment, arm, unit FROM {seen}", here / CLOSED / SEEN)
    enrolled = [here / CLOSED / SEEN, here / OPEN / REQUESTS]
    counted = [*([kept.exposures] if kept.exposures else []), exposures[0]]
    closed_exposures = added(counted)
    closed_outcomes = added_outcomes([*([kept.outcomes] if kept.outcomes else []), outcomes[0], clicks_alone(late)])
    joined = Joined(
        exposures=with_units(added([closed_exposures, exposures[1]]), enrolled, len(all_wrong), here),
        outcomes=added_outcomes([closed_outcomes, outcomes[1]]),
    )
    state = _Kept(
        key=kept.key, number=number, watermark=at, access=access, parts={**kept.parts, **parts},
        clicks={**kept.clicks, **clicks},
        exposures=closed_exposures, outcomes=closed_outcomes, wrong=tuple(sorted(wrong)), first=first,
        files=_sizes(folder, number),
    )  # fmt: skip
    write_json(folder / STATE, state.model_dump(mode="json"))
    if not from_start:
        shutil.rmtree(before, ignore_errors=True)
    requests = (here / CLOSED / REQUESTS, here / OPEN / REQUESTS)
    return LookJoined(joined, (here / OPEN, here / CLOSED / "all"), requests, from_start)


@dataclass(frozen=True)
class _Split:
    """Tables of lines, rows and clicks, and of the ids of closed requests."""

    lines: Sequence[Path]
    rows: Sequence[Path]
    clicks: Sequence[Path]
    ids: Sequence[Path]

    def tables(self) -> dict[str, str]:
        return {
            "lines": parquet_table(self.lines, LINE_COLUMNS, "lines"),
            "rows": parquet_table(self.rows, PREDICTION_COLUMNS, "prediction log"),
            "clicks": parquet_table(self.clicks, CLICK_COLUMNS, "clicks"),
            "ids": parquet_table(self.ids, SHOWN_COLUMNS, "ids"),
        }


def _separate(every: _Split, fresh: _Split, here: Path, final: datetime, rows_since: datetime | None) -> None:
    """Write the tables of requests that are closed now, and of those that stay open.

    A line without a row waits for it, and a row for its line, but for lines that can have none (before ``rows_since``) and rows that
    have none (of copies that a shadow computed).

    Raises:
        _StartOverError: a closed request has a new line or row.
    """
    known, new = every.tables(), fresh.tables()
    with engine(here) as db:
        # Closed requests are many, and those that are asked for are few.
        db.execute(f"""
            CREATE TEMP TABLE asked AS
            SELECT request_id AS id FROM {new["lines"]} UNION SELECT {REQUEST} FROM {new["rows"]}
            UNION SELECT request_id FROM {known["clicks"]}
        """)
        db.execute(f"""
            CREATE TEMP TABLE old AS
            SELECT DISTINCT {REQUEST} AS id FROM {known["ids"]} WHERE {REQUEST} IN (SELECT id FROM asked WHERE id IS NOT NULL)
        """)
        again = db.execute(
            f"""SELECT 1 FROM (SELECT request_id AS id FROM {new["lines"]} UNION ALL SELECT {REQUEST} FROM {new["rows"]})
                WHERE id IN (FROM old) LIMIT 1"""
        ).fetchall()
        if again:
            raise _StartOverError
        until = f"epoch(TIMESTAMPTZ {literal(final.isoformat())})"
        waited = f"epoch(TIMESTAMPTZ {literal((final - GRACE).isoformat())})"
        rowless = "false" if rows_since is None else f"seen_at < epoch(TIMESTAMPTZ {literal(rows_since.isoformat())})"
        db.execute(f"""
            CREATE TEMP TABLE ended AS
            SELECT id FROM (
                SELECT request_id AS id, coalesce(ts, 0) AS seen_at, 1 AS line, false AS copied
                FROM {known["lines"]} WHERE request_id IS NOT NULL
                UNION ALL SELECT {REQUEST}, coalesce(epoch({AT}), 0), 0, coalesce({SHADOW}, false)
                FROM {known["rows"]} WHERE {REQUEST} IS NOT NULL)
            GROUP BY id
            HAVING max(seen_at) <= {until} AND ((bool_or(line = 1) AND bool_or(line = 0)) OR bool_and(copied)
                OR bool_and({rowless}) OR max(seen_at) <= {waited})
        """)
        # Lines without an id belong to no request: they are counted once.
        for name, column, target in (
            ("lines", "request_id", LINES),
            ("rows", REQUEST, ROWS),
            ("clicks", "request_id", CLICKS),
        ):
            table = known[name]
            is_closed = f"{column} IN (FROM ended)" + (f" OR {column} IS NULL" if name == "lines" else "")
            write_parquet(db, f"SELECT * FROM {table} WHERE {is_closed}", here / CLOSED / target)
            beside = f" AND ({column} IS NULL OR {column} NOT IN (FROM old))" if name == "clicks" else ""
            write_parquet(db, f"SELECT * FROM {table} WHERE NOT coalesce({is_closed}, false){beside}", here / target)
        write_parquet(db, f"SELECT * FROM {new['clicks']} WHERE request_id IN (FROM old)", here / "new" / CLICKS)


def _new_lines(logs: Sequence[Path], read: dict[str, int], out: Path) -> tuple[dict[str, int], list[Path]]:
    """Copy whole new lines to ``lines.log``. Returns the bytes read by log, and files with the unfinished last lines; no bytes by
    log if the next look must start over.

    A log is known by its first line, whatever its name: the current one is renamed when it is rotated.
    """
    known, tails, twice = dict(read), [], False
    seen: set[str] = set()
    with (out / "lines.log").open("wb") as target:
        for number, path in enumerate(logs):
            if not path.is_file():
                raise ExperimentError(f"no access log {path}")
            with path.open("rb") as source:
                first = source.readline()
                name = hashlib.sha256(first).hexdigest()
                start = known.get(name, 0) if first.endswith(b"\n") else 0
                if name in seen:  # two logs begin alike: which is which cannot be known at the next look
                    twice = True
                    if read:
                        raise _StartOverError
                if path.stat().st_size < start:
                    raise _StartOverError
                seen.add(name)
                source.seek(start)
                rest = b""
                while chunk := source.read(CHUNK):
                    whole, end, rest = (rest + chunk).rpartition(b"\n")
                    target.write(whole + end)
                    start += len(whole + end)
            if first.endswith(b"\n"):
                known[name] = start
            if rest:
                tail = out / f"tail-{number:06d}.log"
                tail.write_bytes(rest)
                tails.append(tail)
    return ({} if twice else known), tails


def _keep_ids(here: Path, target: Path) -> None:
    """Write the ids of the requests that were closed now, with their exposures if they have any."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(quoted(field.name) for field in SHOWN_COLUMNS)
    shown = parquet_table([here / CLOSED / EXPOSURES], SHOWN_COLUMNS, "exposures")
    lines = parquet_table([here / CLOSED / LINES], LINE_COLUMNS, "lines")
    rows = parquet_table([here / CLOSED / ROWS], PREDICTION_COLUMNS, "prediction log")
    with engine(here) as db:
        write_parquet(
            db,
            f"""SELECT {names} FROM {shown} UNION ALL
                SELECT DISTINCT id, NULL::VARCHAR, NULL::INTEGER, NULL::TIMESTAMPTZ FROM (
                    SELECT request_id AS id FROM {lines} UNION ALL SELECT {REQUEST} FROM {rows})
                WHERE id IS NOT NULL AND id NOT IN (SELECT {REQUEST} FROM {shown} WHERE {REQUEST} IS NOT NULL)""",
            target,
        )


def _first(exposures: Sequence[Path], known: datetime | None) -> datetime | None:
    """Time of the first exposure."""
    table = parquet_table(exposures, SHOWN_COLUMNS, "exposures")
    with engine(exposures[0].parent) as db:
        ((micros,),) = db.execute(f"SELECT epoch_us(min({AT})) FROM {table}").fetchall()
    found = None if micros is None else datetime.fromtimestamp(0, timezone.utc) + timedelta(microseconds=micros)
    times = [time for time in (found, known) if time is not None]
    return min(times, default=None)


def _hashed(pair: tuple[str, int]) -> str:
    return sha256_text(repr(pair))[:16]
