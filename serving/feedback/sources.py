"""Events from files: a training log, a prediction log, parquet of impressions and clicks, JSON lines.

Events are read in the order of their time, because a log in that order gives the counters of training. An imported event is accepted at
its own time, or at the time of the last record of the log if that is later.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from serving.feedback.quarantine import Quarantine
from serving.feedback.rules import EventRules
from thinktwice.data.feature_tables import CLEAN_FILE
from thinktwice.errors import DataError, reason
from thinktwice.files import parse_json
from thinktwice.parquet import open_parquet, read_schema
from thinktwice.records.events import CLICK_COLUMNS, Click, Impression
from thinktwice.records.served import AT, INSTANT, ITEM, PART, REQUEST, USER

BATCH = 20_000  # rows per read

Event = Impression | Click


def events_of(source: Path, rules: EventRules, quarantine: Quarantine) -> Iterator[Event]:
    """The events of one file or folder, in the order of time if the source is ordered. Invalid events go to the quarantine.

    A folder with ``clean.parquet`` is a training log, one with ``served-*.parquet`` a prediction log. A parquet file has the columns
    of clicks, or those of an impression: request_id, item_id, user_id, at and one per value. Other files are JSON lines.

    Raises:
        DataError: the source is none of these, or cannot be read.
    """
    if source.is_dir():
        parts = sorted(source.glob(PART))
        if not parts:
            raise DataError(
                f"{source} contains neither {CLEAN_FILE} nor {PART}: give a training log, a prediction log or a file"
            )
        return _of_served(parts, rules, quarantine)
    if not source.is_file():
        raise DataError(f"{source} does not exist: pass a file or a folder of events")
    if source.suffix == ".parquet":
        return _of_parquet(source, rules, quarantine)
    return _of_lines(source, rules, quarantine)


def merged(streams: Sequence[Iterable[Event]]) -> Iterator[Event]:
    """Merge streams in the order of time; at the same time, impressions come before clicks."""
    return heapq.merge(*streams, key=lambda event: (event.time, event.kind == "click"))


def _of_served(parts: list[Path], rules: EventRules, quarantine: Quarantine) -> Iterator[Event]:
    """Each looked-up row of a prediction log as an impression at the instant of its request."""
    for part in parts:
        names = read_schema(part).names
        fields = [f for f in rules.fields if f in names]
        instants = [name for name in (INSTANT, AT) if name in names]  # logs of earlier versions have no instant
        with open_parquet(part) as file:
            for batch in file.iter_batches(BATCH, columns=[REQUEST, *instants, USER, ITEM, *fields]):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                frame = frame.with_columns(pl.coalesce(instants).dt.epoch("us").alias(AT)).sort(AT, maintain_order=True)
                for row in frame.iter_rows(named=True):
                    if row[ITEM] is None:
                        continue  # a raw row: nothing was looked up
                    shown = {
                        "kind": "impression",
                        "request_id": row[REQUEST],
                        "item_id": row[ITEM],
                        "user_id": row[USER],
                        "at": row[AT] / 1e6,
                        "values": {name: row[name] for name in fields},
                    }
                    yield from _checked(shown, rules, quarantine)


def _of_parquet(source: Path, rules: EventRules, quarantine: Quarantine) -> Iterator[Event]:
    names = set(read_schema(source).names)
    is_click = names <= {*CLICK_COLUMNS.names, "kind"}
    ids = {"request_id", "item_id", "at"} | (set() if is_click else {"user_id"})
    if missing := sorted(ids - names):
        raise DataError(
            f"{source} has no column {missing[0]!r}: give {', '.join(sorted(ids))} and a column for each value"
        )
    fields = [f for f in rules.fields if f in names]
    with open_parquet(source) as file:
        for batch in file.iter_batches(BATCH, columns=[*sorted(ids), *(fields if not is_click else [])]):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            if frame.schema["at"].is_temporal():
                frame = frame.with_columns(pl.col("at").dt.epoch("us") / 1e6)
            for row in frame.sort("at", maintain_order=True).iter_rows(named=True):
                event: dict[str, object] = {"kind": "click" if is_click else "impression"}
                event |= {name: row[name] for name in ids}
                if not is_click:
                    event["values"] = {name: row[name] for name in fields}
                yield from _checked(event, rules, quarantine)


def _of_lines(source: Path, rules: EventRules, quarantine: Quarantine) -> Iterator[Event]:
    with source.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                event = rules.event(parse_json(line))
            except ValueError as error:
                quarantine.add([(reason(error), line.decode("utf-8", "replace"))])
                continue
            yield event


def _checked(value: dict[str, object], rules: EventRules, quarantine: Quarantine) -> Iterator[Event]:
    try:
        event = rules.event(value)
    except ValueError as error:
        quarantine.add([(reason(error), value)])
        return
    yield event
