"""Records of the durable log: an event with the time of its acceptance, or a tick of the clock without events.

``at`` never decreases from one record to the next. It is the only clock for everything derived from the log, so a replay reproduces the
original run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from thinktwice.records.events import Click, Impression

Kind = Literal["impression", "click", "tick", "start"]


@dataclass(frozen=True, slots=True)
class Record:
    """A record. ``at`` and ``time`` are UTC microseconds; a ``tick`` has only ``at``.

    ``start`` is the first record of a log that begins with a training log: the log contains all earlier outcomes.
    """

    kind: Kind
    at: int
    request_id: str = ""
    item_id: str | None = None
    user_id: str | None = None
    time: int = 0
    values: dict[str, str | None] | None = None


def recorded(event: Impression | Click, at: int) -> Record:
    """The record of an event that is accepted at ``at``."""
    if isinstance(event, Click):
        return Record("click", at, event.request_id, event.item_id, None, event.time)
    return Record("impression", at, event.request_id, event.item_id, event.user_id, event.time, event.values)


def to_json(record: Record) -> bytes:
    """A record as one line of JSON without a newline."""
    out: dict[str, Any] = {"kind": record.kind, "at": record.at}
    if record.kind in ("impression", "click"):
        out |= {"request_id": record.request_id, "item_id": record.item_id, "time": record.time}
    if record.kind == "impression":
        out |= {"user_id": record.user_id, "values": record.values or {}}
    return orjson.dumps(out)


def from_json(line: bytes) -> Record:
    """Inverse of :func:`to_json`; raises ValueError for invalid input."""
    value = orjson.loads(line)
    try:
        return Record(**value)
    except TypeError as error:
        raise ValueError(f"it is not a record ({error})") from None
