"""Outcomes: exposures with the clicks of the feedback log, as one folder that is replaced as a whole.

A run joins what is new and what is not final yet (:mod:`thinktwice.experiment.outcome_parts`); the files of final outcomes, and of the log
made from them, are linked from run to run.
"""

# ruff: noqa: S608 - paths are escaped

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from serving.feedback.clicks import GROWING, write_clicks
from thinktwice.data.outcome_log import LOG, LogCounts, schema_of_outcomes, write_outcome_log
from thinktwice.errors import DataError
from thinktwice.experiment.closing import StartOverError
from thinktwice.experiment.exposures import OPEN, Collected, parts_of, read_collected, sole_writer
from thinktwice.experiment.kept import link, set_aside
from thinktwice.experiment.outcome_parts import KEPT, Clicks, OutcomeState, join_new, keep, kept_state
from thinktwice.experiment.outcomes import OUTCOMES, OutcomeCounts, Window
from thinktwice.experiment.query import engine, write_parquet
from thinktwice.files import atomic_dir, read_json, sha256_text, write_json
from thinktwice.frozen import Frozen
from thinktwice.parquet import read_schema
from thinktwice.query import source
from thinktwice.schema import SCHEMA_FILE, LogSchema

JOINED = "outcomes.json"
LOG_STATE, COLUMNS = "log.json", "columns.parquet"


class Joined(Frozen):
    """What ``outcomes.json`` says about the files beside it.

    Attributes:
        watermark: time up to which the feedback log is complete.
        log: rows of the log for training; null if none was written.
        from_start: whether this run joined everything.
        damaged: number of kept files that were damaged, so that this run joined everything; ``set_aside`` is where they lie now.
    """

    format: Literal[2] = 2
    watermark: AwareDatetime
    window: Window
    counts: OutcomeCounts
    log: LogCounts | None
    exposures: Collected
    from_start: bool
    damaged: int = 0
    set_aside: str | None = None


class _LogState(Frozen):
    """Content of ``.kept/log.json``: counts of the files of ``log.parquet`` that the next run links, by name."""

    key: str
    counts: dict[str, LogCounts]


@dataclass(frozen=True)
class _Log:
    """How the log for training is made."""

    schema: LogSchema
    ended: Collection[str]
    include_running: bool


def join(
    events: Path,
    exposures: Path,
    out: Path,
    window: Window,
    *,
    schema: LogSchema | None = None,
    ended: Collection[str] = (),
    include_running: bool = False,
    memory: str = "2GB",
) -> Joined:
    """Join the clicks of a feedback log with collected exposures into ``out``: ``outcomes.parquet`` (a folder of parquet files),
    ``outcomes.json``, and with a schema ``log.parquet`` (such a folder) and ``schema.yaml``.

    Args:
        ended, include_running: see :func:`thinktwice.data.outcome_log.write_outcome_log`.

    Raises:
        DataError: the feedback log is missing or damaged, or no log for training can be made of these exposures.
        ExperimentError: the exposures are missing or damaged.
        ResourceError: memory and disk are too small.
    """
    made = None if schema is None else _Log(schema, ended, include_running)
    with sole_writer(exposures):  # a collection would replace the rows while they are read
        collected = read_collected(exposures)
        if schema is not None and schema.entities.user is not None and collected.user_ids != "raw":
            raise DataError(
                f"the prediction log hides user ids (user_ids: {collected.user_ids}), so no model can be trained from it: "
                "log raw ids, or join without a schema"
            )
        with sole_writer(out):
            tables, watermark = write_clicks(events, out.with_name(f".{out.name}.clicks"))
            if watermark is None:
                raise DataError(
                    f"the event log {events} is empty: start `thinktwice feedback run` and send it the clicks"
                )
            clicks = Clicks([t for t in tables if t.name != GROWING], [t for t in tables if t.name == GROWING])
            return _join(exposures, collected, clicks, watermark, out, window, made, memory)


def _join(
    exposures: Path,
    collected: Collected,
    clicks: Clicks,
    watermark: datetime,
    out: Path,
    window: Window,
    made: _Log | None,
    memory: str,
) -> Joined:
    state, broken = kept_state(out, window, collected, watermark)
    aside = set_aside(out, broken, out.with_name(f".{out.name}.damaged"))
    empty = OutcomeState(key=state.key, watermark=watermark)
    with atomic_dir(out) as folder:
        for attempt in (state, empty):
            try:
                after, counts = join_new(
                    exposures,
                    collected,
                    clicks,
                    folder,
                    out,
                    attempt,
                    watermark=watermark,
                    window=window,
                    memory=memory,
                )
            except StartOverError:
                if not attempt.tables and not attempt.clicks and not attempt.closed:
                    raise DataError(
                        f"a click in {exposures} has no time at which it was received: restore the event log"
                    ) from None
                for left in folder.iterdir():
                    shutil.rmtree(left)
                continue
            break
        linked = [folder / OUTCOMES / path.name for path in _closed(out / OUTCOMES)][: attempt.written]
        log, log_linked, log_written = None, list[Path](), list[Path]()
        if made is not None:
            (folder / SCHEMA_FILE).write_text(schema_of_outcomes(made.schema).to_yaml(), encoding="utf-8")
            known = [path.name for path in linked] if attempt.written else []
            log, log_linked, log_written = _write_log(folder, out, made, known, attempt.files, memory)
        keep(after, folder, [*linked, *log_linked], log_written)
        joined = Joined(
            watermark=watermark, window=window, counts=counts, log=log, exposures=collected, from_start=not attempt.clicks,
            damaged=len(broken), set_aside=None if aside is None else str(aside),
        )  # fmt: skip
        (folder / JOINED).write_text(joined.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return joined


def _write_log(
    folder: Path, out: Path, made: _Log, known: Collection[str], files: Collection[str], memory: str
) -> tuple[LogCounts, list[Path], list[Path]]:
    """Write ``log.parquet``: of every file of outcomes the rows for training. Returns all counts, the files that were linked from the
    last run, and the written ones that the next run may use.

    Args:
        known: names of the files of outcomes that were linked.
        files: names of all files that the last run kept and that are whole.
    """
    parts, columns = parts_of(folder / OUTCOMES), folder / KEPT / COLUMNS
    with engine(folder / KEPT, memory) as db:
        write_parquet(db, f"SELECT * FROM {source(*parts, options=', union_by_name = true')} LIMIT 0", columns)
    content = (made.schema.to_yaml(), repr(sorted(made.ended)), str(made.include_running), str(read_schema(columns)))
    key = sha256_text(*content)
    before = _log_state(out, key)
    (folder / LOG).mkdir()
    counts, linked, written = dict[str, LogCounts](), list[Path](), list[Path]()
    for part in parts:
        target = folder / LOG / part.name
        if part.name in known and part.name in before and f"{LOG}/{part.name}" in files:
            link(out / LOG / part.name, target)
            counts[part.name] = before[part.name]
            linked.append(target)
            continue
        counts[part.name] = write_outcome_log(
            part,
            made.schema,
            target,
            ended=made.ended,
            include_running=made.include_running,
            memory=memory,
            like=columns,
        )
        if part.name != OPEN:
            written.append(target)
    columns.unlink()
    write_json(folder / KEPT / LOG_STATE, _LogState(key=key, counts=counts).model_dump(mode="json"))
    written.append(folder / KEPT / LOG_STATE)
    return sum(counts.values(), LogCounts(rows=0, running=0, without_ids=0)), linked, written


def _log_state(out: Path, key: str) -> dict[str, LogCounts]:
    """Counts of the files of the last log by name; none if it was made in another way."""
    try:
        state = _LogState.model_validate(read_json(out / KEPT / LOG_STATE))
    except (OSError, ValueError, ValidationError):
        return {}
    return state.counts if state.key == key else {}


def _closed(table: Path) -> list[Path]:
    return [path for path in parts_of(table) if path.name != OPEN]
