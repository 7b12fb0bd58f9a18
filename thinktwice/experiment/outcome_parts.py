"""The outcomes of a collection of exposures, run by run: a run joins what is new and what is not final yet.

A file of exposures is *closed* when it stays as it is (:attr:`~thinktwice.experiment.exposures.Collected.sealed`) and every window in
it has ended: its outcomes are written once and linked from run to run, and its clicks are counted once. All other exposures are joined
by every run, with all clicks that do not belong to a closed file. Any runs give the rows and counts of one run over everything; a
collection that started over, a click log that is another, and damaged files start over here too.
"""

# ruff: noqa: S608 - names are of our own lists, values are escaped by `literal`

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

from thinktwice.experiment.added_counts import added_outcomes, clicks_alone
from thinktwice.experiment.closing import SHOWN_COLUMNS, StartOverError
from thinktwice.experiment.exposures import OPEN, Collected, part_name, parts_of
from thinktwice.experiment.join import EXPOSURES
from thinktwice.experiment.kept import checksums, damaged, link, read_state, write_state
from thinktwice.experiment.outcomes import OUTCOMES, OutcomeCounts, Window, join_outcomes
from thinktwice.experiment.query import engine, parquet_table, write_parquet
from thinktwice.files import sha256_text
from thinktwice.frozen import Frozen
from thinktwice.parquet import num_rows, read_table
from thinktwice.query import quoted, source
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.records.served import AT, ITEM, REQUEST

KEPT, STATE, CLICKS = ".kept", "state.json", "clicks.parquet"


class OutcomeState(Frozen):
    """Content of ``.kept/state.json``.

    Attributes:
        key: of the window and of the generation of the exposures.
        closed: number of closed files of exposures, the first of the collection.
        written: number of files of their outcomes.
        tables: names of the complete tables of clicks that were read.
        clicks: number of clicks that were read, in the order of the tables; ``last`` is the last of them.
        counts: of closed files.
        first: time of the first exposure in a closed file.
        files: checksum of every file that the next run reads or links.
    """

    format: Literal[1] = 1  # another format starts over
    key: str
    watermark: AwareDatetime
    closed: int = 0
    written: int = 0
    tables: tuple[str, ...] = ()
    clicks: int = 0
    last: str = ""
    counts: OutcomeCounts | None = None
    first: AwareDatetime | None = None
    files: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Clicks:
    """The clicks of a log, in its order.

    Attributes:
        complete: tables that stay as they are.
        growing: table of the newest clicks, which the next run may find longer, or complete under another name.
    """

    complete: Sequence[Path]
    growing: Sequence[Path]


def kept_state(out: Path, window: Window, collected: Collected, watermark: datetime) -> tuple[OutcomeState, list[str]]:
    """What the last run kept in ``out``, an empty state if it does not fit this one; and its damaged files."""
    empty = OutcomeState(key=sha256_text(window.model_dump_json(), collected.generation), watermark=watermark)
    try:
        state = read_state(out / KEPT / STATE, OutcomeState)
    except ValueError:
        return empty, [f"{KEPT}/{STATE}"]
    if state is None:
        return empty, []
    if state.key != empty.key or state.watermark > watermark or state.closed > collected.sealed:
        return empty, []
    broken = damaged(out, state.files)
    return (empty if broken else state), broken


def join_new(
    exposures: Path,
    collected: Collected,
    clicks: Clicks,
    folder: Path,
    before: Path,
    state: OutcomeState,
    *,
    watermark: datetime,
    window: Window,
    memory: str,
) -> tuple[OutcomeState, OutcomeCounts]:
    """Write ``outcomes.parquet`` into ``folder``: a folder of parquet files. Returns what the next run needs, but for its files
    (:func:`keep`), and the counts of everything.

    Args:
        exposures: folder of the collection.
        before: folder of the last run, whose state this is.

    Raises:
        StartOverError: the state does not fit.
        ExperimentError: a file is damaged or lacks a column.
    """
    kept, scratch, target = folder / KEPT, folder / ".new", folder / OUTCOMES
    for path in (kept, scratch / "closed", scratch / "late", target):
        path.mkdir(parents=True)
    for number in range(1, state.written + 1):
        link(before / OUTCOMES / part_name(number), target / part_name(number))
    read, last = _new_clicks(clicks, state, scratch / CLICKS)

    table = exposures / EXPOSURES
    old = [table / part_name(number) for number in range(1, state.closed + 1)]
    sealed = [table / part_name(number) for number in range(state.closed + 1, collected.sealed + 1)]
    final = watermark - timedelta(seconds=window.seconds + window.late_seconds)
    closing = _ended(sealed, final, scratch)
    others = [path for path in parts_of(table) if path not in {*old, *closing}]
    carried = [before / KEPT / CLICKS] if state.clicks else []
    _separate(old, closing, scratch, carried, kept, memory)

    late = join_outcomes(
        [scratch / "late" / EXPOSURES], [scratch / "late" / CLICKS], scratch / "late", watermark, window, memory
    )
    if late.matched or late.pending:
        raise StartOverError  # a click without the time at which it was received
    found = [clicks_alone(late)]
    if closing:
        found.append(
            join_outcomes(closing, [scratch / "closed" / CLICKS], scratch / "closed", watermark, window, memory)
        )
        os.replace(scratch / "closed" / OUTCOMES, target / part_name(state.written + 1))
    so_far = added_outcomes([*([state.counts] if state.counts else []), *found])
    first = _first(closing, state.first, scratch)
    still = join_outcomes(
        others, [kept / CLICKS], scratch, watermark, window, memory, collected.watermark, first
    )  # fmt: skip
    os.replace(scratch / OUTCOMES, target / OPEN)
    shutil.rmtree(scratch)
    after = state.model_copy(
        update={
            "watermark": watermark, "closed": state.closed + len(closing), "written": state.written + bool(closing),
            "tables": tuple(path.name for path in clicks.complete), "clicks": read, "last": last, "counts": so_far, "first": first,
        }
    )  # fmt: skip
    return after, added_outcomes([so_far, still])


def keep(state: OutcomeState, folder: Path, linked: Sequence[Path], written: Sequence[Path] = ()) -> None:
    """Write the state of :func:`join_new` with the checksums of its files.

    Args:
        linked: files in the folder that were linked from the last run: their checksums are known.
        written: other files that the next run links.
    """
    known = {name: state.files[name] for name in (str(path.relative_to(folder)) for path in linked)}
    new = [path for path in parts_of(folder / OUTCOMES) if path.name != OPEN and path not in linked]
    found = checksums(folder, [folder / KEPT / CLICKS, *new, *written])
    write_state(folder / KEPT / STATE, state.model_copy(update={"files": known | found}))


def _new_clicks(clicks: Clicks, state: OutcomeState, target: Path) -> tuple[int, str]:
    """Write the clicks that no earlier run has read. Returns the number of all clicks, and the last of them.

    Raises:
        StartOverError: the log is not the one that was read.
    """
    names = tuple(path.name for path in clicks.complete)
    if names[: len(state.tables)] != state.tables:
        raise StartOverError
    begin, tables, last = 0, [], state.last
    for path in (*clicks.complete, *clicks.growing):
        rows = num_rows(path)
        read = min(max(state.clicks - begin, 0), rows)
        if 0 < read == state.clicks - begin and _row(path, read - 1) != state.last:
            raise StartOverError
        if read < rows:
            table = source(path, options=", file_row_number = true")
            tables.append(
                f"SELECT {', '.join(map(quoted, CLICK_COLUMNS.names))} FROM {table} WHERE file_row_number >= {read}"
            )
            last = _row(path, rows - 1)
        begin += rows
    if begin < state.clicks:
        raise StartOverError
    none = parquet_table([], CLICK_COLUMNS, "clicks")
    with engine(target.parent) as db:
        write_parquet(db, " UNION ALL ".join(tables) or f"SELECT * FROM {none}", target)
    return begin, last


def _row(path: Path, number: int) -> str:
    """A click, as text."""
    return sha256_text(repr(read_table(path).slice(number, 1).to_pylist()))


def _ended(parts: Sequence[Path], final: datetime, scratch: Path) -> list[Path]:
    """The first files of which every window has ended."""
    ended = []
    for part in parts:
        newest = _time(f"max({AT})", [part], scratch)
        if newest is not None and newest > final:
            break
        ended.append(part)
    return ended


def _first(parts: Sequence[Path], known: datetime | None, scratch: Path) -> datetime | None:
    found = _time(f"min({AT})", parts, scratch)
    return min((time for time in (found, known) if time is not None), default=None)


def _time(value: str, parts: Sequence[Path], scratch: Path) -> datetime | None:
    with engine(scratch) as db:
        ((micros,),) = db.execute(
            f"SELECT epoch_us({value}) FROM {parquet_table(parts, SHOWN_COLUMNS, 'exposures')}"
        ).fetchall()
    return None if micros is None else datetime.fromtimestamp(0, timezone.utc) + timedelta(microseconds=micros)


def _separate(
    old: Sequence[Path], closing: Sequence[Path], scratch: Path, carried: Sequence[Path], kept: Path, memory: str
) -> None:
    """Write the clicks on files that were closed before (with their exposures), those on files that are closed now, and all others.

    A click belongs to a file if its request and item are there; clicks that belong to none may find an exposure later.
    """
    new = parquet_table([scratch / CLICKS], CLICK_COLUMNS, "clicks")
    every = parquet_table([scratch / CLICKS, *carried], CLICK_COLUMNS, "clicks")
    shown, closed = (parquet_table(parts, SHOWN_COLUMNS, "exposures") for parts in (old, closing))
    names = ", ".join(field.name for field in SHOWN_COLUMNS)
    with engine(scratch, memory) as db:
        for name, table, clicks in (("old", shown, new), ("now", closed, every)):
            db.execute(f"""
                CREATE TEMP TABLE {name} AS SELECT {names} FROM {table}
                WHERE {REQUEST} IN (SELECT request_id FROM {clicks} WHERE request_id IS NOT NULL)
            """)
        write_parquet(db, "SELECT * FROM old", scratch / "late" / EXPOSURES)
        for name, clicks, target in (("old", new, scratch / "late"), ("now", every, scratch / "closed")):
            write_parquet(db, f"SELECT * FROM {clicks} c WHERE EXISTS ({_match(name)})", target / CLICKS)
        rest = f"NOT EXISTS ({_match('old')}) AND NOT EXISTS ({_match('now')})"
        write_parquet(db, f"SELECT * FROM {every} c WHERE {rest}", kept / CLICKS)


def _match(table: str) -> str:
    return f"FROM {table} e WHERE e.{REQUEST} = c.request_id AND e.{ITEM} = c.item_id"
