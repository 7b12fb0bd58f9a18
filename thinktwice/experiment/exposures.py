"""The collection of exposures: the join of all logs up to a watermark, as one folder that is replaced as a whole.

A run reads what is new in the logs, and requests that are not closed yet (``closing.py``); the rows of closed requests lie in files
that are linked from run to run. Any runs give the rows and counts of one run over all logs that are there: when a closed request turns
up again, a log has gone, or what was kept is damaged, all logs are joined from the beginning. Memory is bounded: what does not fit goes
to disk beside the folder.
"""

# ruff: noqa: S608 - names are of our own lists, paths are escaped

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from thinktwice.errors import ExperimentError
from thinktwice.experiment.added_counts import SEEN_COLUMNS, added, with_units
from thinktwice.experiment.assignment import BucketLayout, layout_of
from thinktwice.experiment.batches import in_batches
from thinktwice.experiment.closing import (
    GRACE,
    LINES,
    ROWS,
    Requests,
    StartOverError,
    Waits,
    close_requests,
    new_lines,
    write_closed,
)
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.join import EXPOSURES, REQUESTS, Logs, join_exposures, write_lines
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.experiment.kept import checksums, damaged, link, read_state, set_aside, write_state
from thinktwice.experiment.query import engine, parquet_table, write_parquet
from thinktwice.files import atomic_dir, sha256_text
from thinktwice.frozen import Frozen
from thinktwice.parquet import num_rows, read_schema
from thinktwice.query import source
from thinktwice.records.served import REQUEST, USER_IDS, UserIds

COLLECTED = "exposures.json"
KEPT = ".kept"  # folder of what the next run needs, within that of the exposures
STATE, SEEN, IDS = "state.json", "units-seen.parquet", "ids"
SEALED = 1_000_000  # rows from which on a file of closed requests is never written again
OPEN = "open.parquet"  # rows of open requests


class Collected(Frozen):
    """What ``exposures.json`` says about the files beside it.

    Attributes:
        watermark: requests up to it were joined; later ones are counted as open.
        user_ids: how the prediction logs hide user ids; the strictest of all parts.
        generation: another one after every start over.
        sealed: the first so many files of this generation stay as they are.
        from_start: whether this run read all logs.
        damaged: number of kept files that were damaged, so that this run read all logs; ``set_aside`` is where they lie now.
    """

    format: Literal[2] = 2
    watermark: AwareDatetime
    user_ids: UserIds
    counts: JoinCounts
    generation: str
    sealed: int
    from_start: bool
    damaged: int = 0
    set_aside: str | None = None


class _State(Frozen):
    """Content of ``.kept/state.json``.

    Attributes:
        key: of everything that the join depends on but the logs.
        access: bytes that were read of every access log, by the hash of its first line.
        parts: size and time of every part of a prediction log that was read, by path.
        counts: of closed requests. Counts of distinct units are computed from files.
        closed: number of files of closed requests.
        files: checksum of every file that the next run reads.
    """

    format: Literal[1] = 1  # another format starts over
    key: str
    generation: str
    watermark: AwareDatetime
    access: dict[str, int]
    parts: dict[str, tuple[int, int]]
    user_ids: UserIds
    counts: JoinCounts | None
    closed: int
    sealed: int
    files: dict[str, str]


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """The only run that writes the folder ``out``, after removing what a killed one has left beside it.

    Raises:
        ExperimentError: another run writes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ExperimentError(f"another run writes {out}: wait for it, or choose another folder") from None
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield


def widest_layout(experiments: Sequence[ExperimentFile]) -> BucketLayout:
    """The layout of experiments that share a salt, each at the highest coverage of its ramp: enrolled at any step is enrolled
    there."""
    widest = []
    for file in experiments:
        coverage = max((file.coverage, *(step.coverage for step in file.ramp)))
        widest.append(file.model_copy(update={"coverage": coverage}))
    return layout_of(widest)


def collect_exposures(
    experiments: Sequence[ExperimentFile],
    access: Sequence[Path],
    predictions: Sequence[Path],
    out: Path,
    watermark: datetime,
    memory: str = "2GB",
) -> Collected:
    """Join the logs into ``out``, which is replaced as a whole: ``exposures.parquet`` and ``requests.parquet``, which are folders of
    parquet files, and ``exposures.json``.

    Args:
        experiments: of one salt.
        access: access logs of the gateway.
        out: written by one run at a time (:func:`sole_writer`).
        predictions: parts of the prediction logs of all arms.
        watermark: time up to which the logs are complete.

    Raises:
        ExperimentError: a log is missing, damaged, or has no columns of experiments; or experiments conflict.
        ResourceError: memory and disk are too small.
        ValueError: the watermark has no time zone.
    """
    if watermark.tzinfo is None:
        raise ValueError("the watermark needs a time zone")
    layout = widest_layout(experiments)
    logs = Logs(access, predictions)
    kept, broken = _read(out, sha256_text(repr(layout)), watermark)
    aside = set_aside(out, broken, out.with_name(f".{out.name}.damaged"))
    with atomic_dir(out) as folder:
        if kept is not None:
            try:
                return _collect_batches(logs, layout, folder, out, kept, watermark, memory)
            except StartOverError:
                _empty(folder)
        state = _State(
            key=sha256_text(repr(layout)), generation=uuid.uuid4().hex, watermark=watermark, access={}, parts={},
            user_ids="raw", counts=None, closed=0, sealed=0, files={},
        )  # fmt: skip
        try:
            done = _collect_batches(logs, layout, folder, None, state, watermark, memory)
        except StartOverError:  # times of the logs are out of order
            _empty(folder)
            done = _collect(logs, layout, folder, None, state, watermark, memory)
        if broken:
            done = done.model_copy(update={"damaged": len(broken), "set_aside": None if aside is None else str(aside)})
            _write_collected(done, folder)
    return done


def parts_of(table: Path) -> list[Path]:
    """The parquet files of a table of a collection: closed requests in their order, then open ones."""
    closed = sorted(table.glob("part-*.parquet"))
    return [*closed, *([table / OPEN] if (table / OPEN).is_file() else [])]


def part_name(number: int) -> str:
    """Name of the file of closed requests with a number, from 1."""
    return f"part-{number:06d}.parquet"


def read_collected(folder: Path) -> Collected:
    """What a collection says about itself.

    Raises:
        ExperimentError: the folder holds no collection.
    """
    try:
        return Collected.model_validate_json((folder / COLLECTED).read_bytes())
    except FileNotFoundError:
        raise ExperimentError(f"{folder} contains no exposures: collect them with `thinktwice exposures`") from None
    except (OSError, ValidationError):
        raise ExperimentError(f"{folder / COLLECTED} cannot be read: collect the exposures again") from None


def _read(out: Path, key: str, watermark: datetime) -> tuple[_State | None, tuple[str, ...]]:
    """What the last run kept, None if it does not fit this one; and its damaged files."""
    try:
        state = read_state(out / KEPT / STATE, _State)
    except ValueError:
        return None, (f"{KEPT}/{STATE}",)
    if state is None:
        return None, ()
    if state.key != key or state.watermark > watermark or not state.access:
        return None, ()
    broken = tuple(damaged(out, state.files))
    return (None if broken else state), broken


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def _collect_batches(
    logs: Logs,
    layout: BucketLayout,
    folder: Path,
    before: Path | None,
    state: _State,
    watermark: datetime,
    memory: str,
) -> Collected:
    """:func:`_collect`, batch by batch where much is new."""
    scratch, last = folder / ".batches", before
    for number, batch in enumerate(in_batches(logs, state.access, state.parts, watermark)):
        if batch.watermark == watermark:
            done = _collect(logs, layout, folder, last, state, watermark, memory)
            break
        if batch.watermark <= state.watermark and last is not None:
            continue  # something late is new; it is joined with what follows
        step = scratch / str(number)
        step.mkdir(parents=True)
        _collect(batch.logs, layout, step, last, state, batch.watermark, memory)
        found = read_state(step / KEPT / STATE, _State)
        assert found is not None
        if number > 0:
            shutil.rmtree(scratch / str(number - 1), ignore_errors=True)
        last, state = step, found
    shutil.rmtree(scratch, ignore_errors=True)
    if before is None and not done.from_start:
        done = done.model_copy(update={"from_start": True})
        _write_collected(done, folder)
    return done


def _collect(
    logs: Logs,
    layout: BucketLayout,
    folder: Path,
    before: Path | None,
    state: _State,
    watermark: datetime,
    memory: str,
) -> Collected:
    """Write a collection into ``folder``.

    Args:
        before: the last collection, whose state this is; None: all logs are read.

    Raises:
        StartOverError: the state does not fit the logs.
    """
    kept, scratch = folder / KEPT, folder / ".new"
    closed = scratch / "closed"
    for path in (closed, kept / IDS, folder / EXPOSURES, folder / REQUESTS):
        path.mkdir(parents=True)
    parts = {str(path.absolute()): _stamp(path) for path in logs.predictions}
    lines = new_lines(logs.access, state.access, scratch)
    if not state.access.keys() <= lines.read.keys() or any(parts.get(k) != v for k, v in state.parts.items()):
        raise StartOverError  # a log that was read is gone, or is another
    fresh = [path for path in logs.predictions if str(path.absolute()) not in state.parts]
    write_lines([lines.whole], scratch / LINES, memory)
    write_lines(lines.tails, scratch / "tails.parquet", memory)
    earlier = [] if before is None else [before / KEPT]
    old = [] if before is None else [before / KEPT / IDS / part_name(n + 1) for n in range(state.closed)]
    requests = Requests(
        fresh_lines=[scratch / LINES], tails=[scratch / "tails.parquet"], fresh_rows=fresh, ids=old,
        lines=[scratch / LINES, *(path / LINES for path in earlier)], rows=[*fresh, *(path / ROWS for path in earlier)],
    )  # fmt: skip
    waited = watermark - GRACE
    with engine(scratch, memory) as db:
        close_requests(db, requests, Waits(waited, waited))
        write_closed(db, requests, closed, kept)
        write_parquet(db, f"SELECT id AS {REQUEST} FROM ended", closed / IDS)

    counts = [
        join_exposures(
            Logs([], requests.rows, None, [closed / LINES], only=closed / IDS), layout, closed, memory, watermark
        ),
        join_exposures(
            Logs(lines.tails, [kept / ROWS], None, [kept / LINES]), layout, scratch / "open", memory, watermark
        ),
    ]
    for table in (EXPOSURES, REQUESTS):
        os.replace(scratch / "open" / table, folder / table / OPEN)
    seen = parquet_table([closed / REQUESTS, *(path / SEEN for path in earlier)], SEEN_COLUMNS, "requests")
    with engine(scratch, memory) as db:
        write_parquet(db, f"SELECT DISTINCT experiment, arm, unit FROM {seen}", kept / SEEN)
    closed_parts, sealed = _keep_closed(closed, folder, before, state, memory)
    so_far = added([*([state.counts] if state.counts else []), counts[0]])
    everything = with_units(added([so_far, counts[1]]), [kept / SEEN, folder / REQUESTS / OPEN], 0, scratch)
    shutil.rmtree(scratch)

    user_ids = _strictest([state.user_ids, *map(_user_ids, fresh)])
    sealed_before = {part_name(number) for number in range(1, state.sealed + 1)}
    files = [kept / LINES, kept / ROWS, kept / SEEN, *(kept / IDS).iterdir()]
    files += [path for table in (EXPOSURES, REQUESTS) for path in parts_of(folder / table) if path.name != OPEN]
    same = {name: digest for name, digest in state.files.items() if Path(name).name in sealed_before}
    written = checksums(folder, [path for path in files if str(path.relative_to(folder)) not in same])
    next_state = state.model_copy(
        update={
            "watermark": watermark, "access": lines.read, "parts": parts, "user_ids": user_ids, "counts": so_far,
            "closed": closed_parts, "sealed": sealed, "files": same | written,
        }
    )  # fmt: skip
    write_state(kept / STATE, next_state)
    collected = Collected(
        watermark=watermark, user_ids=user_ids, counts=everything, generation=state.generation, sealed=sealed,
        from_start=before is None,
    )  # fmt: skip
    _write_collected(collected, folder)
    return collected


def _write_collected(collected: Collected, folder: Path) -> None:
    (folder / COLLECTED).write_text(collected.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _keep_closed(closed: Path, folder: Path, before: Path | None, state: _State, memory: str) -> tuple[int, int]:
    """Link the files of closed requests, and add those that were closed now to the last one until it is large, so that there are
    few files and none is written often. Returns their number, and how many of them are sealed."""
    if before is not None:
        for number in range(1, state.closed + 1):
            name = part_name(number)
            for table in (EXPOSURES, REQUESTS, f"{KEPT}/{IDS}"):
                link(before / table / name, folder / table / name)
    if not num_rows(closed / IDS):
        return state.closed, state.sealed
    extend = state.closed > state.sealed
    number = state.closed if extend else state.closed + 1
    rows = []
    with engine(closed, memory) as db:
        for table, new in ((EXPOSURES, EXPOSURES), (REQUESTS, REQUESTS), (f"{KEPT}/{IDS}", IDS)):
            target = folder / table / part_name(number)
            if extend:
                both = source(target, closed / new, options=", union_by_name = true")
                write_parquet(db, f"SELECT * FROM {both}", target)
            else:
                os.replace(closed / new, target)
            rows.append(num_rows(target))
    return number, number if max(rows) >= SEALED else number - 1


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _user_ids(part: Path) -> UserIds:
    found = (read_schema(part).metadata or {}).get(USER_IDS, b"raw").decode()
    return "none" if found == "none" else "hashed" if found == "hashed" else "raw"


def _strictest(found: Sequence[UserIds]) -> UserIds:
    return "none" if "none" in found else "hashed" if "hashed" in found else "raw"
