"""The join of a running experiment, look by look: a look reads what is new in the logs, and what is not final yet.

Everything that the joins say about a request depends on the lines, rows and clicks of its id alone. A request is *closed* when all logs
are complete for it and the windows of its exposures have ended: its sums per unit, its counts and its id are kept, and its rows are not read
again. All other requests are *open* and are joined at every look. What is known at a look is the sum over closed and open requests, and
equals a join of all logs from the beginning, to the last bit.

What is kept lies in the folder of the look that wrote it, and is never changed. ``looks.json`` names that folder and is written last, so a
look that is killed leaves the state before it. It also has the checksums of all files: one that is missing or damaged starts over, and
the damaged one is set aside.

New lines or rows of a closed request (an id that was used again, a part that was written late) start over from the beginning. Clicks on closed
requests are late, and are counted as such.
"""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from thinktwice.experiment.added_counts import SEEN_COLUMNS, added, added_outcomes, clicks_alone, with_units
from thinktwice.experiment.assignment import BucketLayout
from thinktwice.experiment.closing import (
    GRACE,
    LINES,
    ROWS,
    SHOWN_COLUMNS,
    Requests,
    StartOverError,
    Waits,
    close_requests,
    new_lines,
    write_closed,
    write_closed_ids,
    write_closed_rows,
)
from thinktwice.experiment.exposures import sole_writer
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.gather import Joined, Sources, widest_layout
from thinktwice.experiment.join import EXPOSURES, REQUESTS, Logs, join_exposures, write_lines, wrong_buckets
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.experiment.kept import checksums, damaged, read_state, set_aside, write_state
from thinktwice.experiment.outcomes import OUTCOMES, OutcomeCounts, Window, join_outcomes
from thinktwice.experiment.query import engine, parquet_table, write_parquet
from thinktwice.experiment.unit_sums import add_sums, write_unit_sums
from thinktwice.files import sha256_text
from thinktwice.frozen import Frozen
from thinktwice.query import quoted
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.records.served import AT, REQUEST

LOOK = "look"  # folder beside the record
STATE = "looks.json"
CLICKS, IDS = "clicks.parquet", "ids"
OPEN, CLOSED, SEEN = "open", "closed", "units-seen.parquet"
DAMAGED = "damaged"  # folder of damaged files that were set aside


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
        files: checksum of every kept file, by its path within the folder.
    """

    format: Literal[3] = 3  # another format starts over
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
    files: dict[str, str]


@dataclass(frozen=True)
class LookJoined:
    """A look.

    Attributes:
        folders: of open and of closed requests, each with sums per unit and latencies.
        requests: tables with ``experiment``, ``arm`` and ``unit`` of all enrolled requests.
        from_start: whether all logs were read.
    """

    joined: Joined
    folders: tuple[Path, ...]
    requests: tuple[Path, ...]
    from_start: bool


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
        kept, broken = _read(folder, key, at)
        set_aside(folder, broken, folder / DAMAGED)
        if kept is not None:
            try:
                return _look(file, sources, folder, kept, layout, at, window, from_start=False)
            except StartOverError:
                pass
        empty = _Kept(
            key=key, number=0, watermark=at, access={}, parts={}, clicks={}, exposures=None, outcomes=None, wrong=(), first=None,
            files={},
        )  # fmt: skip
        shutil.rmtree(folder / IDS, ignore_errors=True)
        look = _look(file, sources, folder, empty, layout, at, window, from_start=True)
        return replace(look, joined=look.joined.model_copy(update={"damaged": len(broken)}))


def _read(folder: Path, key: str, at: datetime) -> tuple[_Kept | None, list[str]]:
    """What the last look kept, None if it does not fit this one; and its damaged files."""
    try:
        kept = read_state(folder / STATE, _Kept)
    except ValueError:
        return None, [STATE]
    if kept is None:
        return None, []
    if not kept.access or kept.key != key or kept.watermark > at:
        return None, []
    broken = damaged(folder, kept.files)
    return (None if broken else kept), broken


def _files(folder: Path, number: int) -> list[Path]:
    """The files that the look after this one reads."""
    here = folder / str(number)
    ids = [path for path in (folder / IDS).glob("*.parquet") if int(path.stem) <= number]
    kept = [
        *(here / name for name in (LINES, ROWS, CLICKS)),
        *(here / CLOSED / "all").glob("*"),
        here / CLOSED / SEEN,
        *ids,
    ]
    return [path for path in kept if path.is_file()]


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

    new = here / "new"
    lines = new_lines(sources.logs.access, kept.access, new)
    parts = {str(path): path.stat().st_size for path in sources.logs.predictions}
    clicks = {str(path): path.stat().st_size for path in sources.clicks}
    for now, then in ((parts, kept.parts), (clicks, kept.clicks)):
        if any(now.get(path, size) != size for path, size in then.items()):
            raise StartOverError
    new_parts = [path for path in sources.logs.predictions if str(path) not in kept.parts]
    new_clicks = [path for path in sources.clicks if str(path) not in kept.clicks]
    write_lines([lines.whole], new / LINES)
    write_lines(lines.tails, new / "tails.parquet")
    ids = [path for path in sorted((folder / IDS).glob("*.parquet")) if int(path.stem) <= kept.number]
    found = Requests(
        fresh_lines=[new / LINES], tails=[new / "tails.parquet"], fresh_rows=new_parts, ids=ids,
        lines=[new / LINES, *(c / LINES for c in carried)], rows=[*new_parts, *(c / ROWS for c in carried)],
    )  # fmt: skip
    final = at - timedelta(seconds=window.seconds + window.late_seconds)
    waits = Waits(until=final, alone=final - GRACE, rows_since=sources.rows_since)
    _separate(found, new_clicks, [c / CLICKS for c in carried], here, waits)

    closed_logs = Logs([], [here / CLOSED / ROWS], sources.logs.unit_column, [here / CLOSED / LINES])
    open_logs = Logs(lines.tails, [here / ROWS], sources.logs.unit_column, [here / LINES])
    exposures, wrong = [], set(kept.wrong)
    for logs, out in ((closed_logs, here / CLOSED), (open_logs, here / OPEN)):
        exposures.append(join_exposures(logs, layout, out, watermark=at))
        hashes = {_hashed(pair) for pair in wrong_buckets(logs, layout, here)}
        if out.name == CLOSED:
            wrong |= hashes
            all_wrong = set(wrong)
        else:
            all_wrong = wrong | hashes

    first = _first([here / CLOSED / EXPOSURES], kept.first)
    first_of_all = _first([here / OPEN / EXPOSURES], first)
    if kept.first is not None and first_of_all is not None and first_of_all < kept.first:
        raise StartOverError  # clicks of other times were counted against a later first exposure
    outcomes = []
    for out, clicked in ((here / CLOSED, here / CLOSED / CLICKS), (here / OPEN, here / CLICKS)):
        outcomes.append(join_outcomes([out / EXPOSURES], [clicked], out, at, window, first=first_of_all))
        write_unit_sums([out / OUTCOMES], [out / REQUESTS], out, file.slices)
    late = join_outcomes([new / EXPOSURES], [new / CLICKS], new, at, window, first=first_of_all)
    if late.matched or late.pending:
        raise StartOverError  # a click without the time at which it was received

    write_closed_ids(here / CLOSED, folder / IDS / f"{number:06d}.parquet")
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
        key=kept.key, number=number, watermark=at, access={**kept.access, **lines.read}, parts={**kept.parts, **parts},
        clicks={**kept.clicks, **clicks},
        exposures=closed_exposures, outcomes=closed_outcomes, wrong=tuple(sorted(wrong)), first=first,
        files=checksums(folder, _files(folder, number)),
    )  # fmt: skip
    write_state(folder / STATE, state)
    if not from_start:
        shutil.rmtree(before, ignore_errors=True)
    requests = (here / CLOSED / SEEN, here / OPEN / REQUESTS)
    return LookJoined(joined, (here / OPEN, here / CLOSED / "all"), requests, from_start)


def _separate(found: Requests, new: Sequence[Path], carried: Sequence[Path], here: Path, waits: Waits) -> None:
    """Write the tables of requests that are closed now, of those that stay open, and of new clicks on requests that were closed before
    (with their exposures).

    Args:
        new, carried: tables of clicks.

    Raises:
        StartOverError: a closed request has a new line or row.
    """
    late, every = (parquet_table(tables, CLICK_COLUMNS, "clicks") for tables in (new, [*new, *carried]))
    names = ", ".join(quoted(field.name) for field in SHOWN_COLUMNS)
    with engine(here) as db:
        close_requests(db, found, waits, every)
        write_closed(db, found, here / CLOSED, here)
        write_closed_rows(db, found, here / CLOSED / ROWS)
        write_parquet(db, f"SELECT * FROM {every} WHERE request_id IN (FROM ended)", here / CLOSED / CLICKS)
        stay = "request_id IS NULL OR (request_id NOT IN (FROM ended) AND request_id NOT IN (FROM old))"
        write_parquet(db, f"SELECT * FROM {every} WHERE {stay}", here / CLICKS)
        write_parquet(db, f"SELECT * FROM {late} WHERE request_id IN (FROM old)", here / "new" / CLICKS)
        ids = parquet_table(found.ids, SHOWN_COLUMNS, "ids")
        asked = f"SELECT request_id FROM {late} WHERE request_id IN (FROM old)"
        write_parquet(db, f"SELECT {names} FROM {ids} WHERE {REQUEST} IN ({asked})", here / "new" / EXPOSURES)


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
