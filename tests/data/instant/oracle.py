"""The counters of a log, slowly: each row looks at every outcome. Written from the definition, sharing no code with it but hashes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.keys import key_hash, ties

NAN = math.nan


@dataclass(frozen=True)
class Row:
    """One impression: ids, topic and attribute values are spelled texts or missing."""

    time: int
    clicked: bool
    user: str | None
    item: str | None
    topics: tuple[str | None, ...] = ()
    attributes: tuple[str | None, ...] = ()


def counters(log: Sequence[Row], definition: Definition) -> np.ndarray:
    """[rows, C] float32, NaN for unknown."""
    out = [_row(log, row, definition) for row in log]
    assert all(tuple(values) == definition.names for values in out)
    table = [list(values.values()) for values in out]
    return np.array(table, np.float64).reshape(len(log), len(definition.names)).astype(np.float32)


def recent(log: Sequence[Row], row: Row, definition: Definition) -> list[tuple[str, bool]]:
    """The user's latest 200 outcomes with an item before a row, oldest first."""
    mine = [o for o in log if o.user == row.user and o.item is not None and _at(o, definition) < row.time]
    signed = {o.item: int(np.array(key_hash(o.item), np.uint64).view(np.int64)) for o in mine}
    ordered = sorted(mine, key=lambda o: (_at(o, definition), signed[o.item], o.clicked))
    return [(o.item or "", o.clicked) for o in ordered[-200:]] if row.user is not None else []


def _at(outcome: Row, definition: Definition) -> int:
    return outcome.time + (definition.click_delay if outcome.clicked else definition.no_click_delay)


def _tie(outcome: Row) -> int:
    hashes = [np.array([key_hash(key)], np.uint64) for key in (outcome.user, outcome.item)]
    return int(ties(*hashes, np.array([outcome.time]))[0])


def _log_rate(log: Sequence[Row], before: int, definition: Definition) -> float:
    known = [o for o in log if _at(o, definition) < before]
    return (sum(o.clicked for o in known) + 1.0) / (len(known) + 10.0)


def _smooth(clicks: int, views: int, towards: float) -> float:
    return (clicks + 20.0 * towards) / (views + 20.0)


def _rate(log: Sequence[Row], known: Sequence[Row], definition: Definition) -> float:
    latest = max(_at(o, definition) for o in known)
    return _smooth(sum(o.clicked for o in known), len(known), _log_rate(log, latest, definition))


def _residual(log: Sequence[Row], outcome: Row, definition: Definition) -> int:
    at = _at(outcome, definition)
    same = [o for o in log if outcome.item is not None and o.item == outcome.item and _at(o, definition) < at]
    rate = _rate(log, same, definition) if same else _log_rate(log, at, definition)
    return int(outcome.clicked) * 2**20 - round(rate * 2**20)


def _row(log: Sequence[Row], row: Row, definition: Definition) -> dict[str, float]:
    values: dict[str, float] = {}
    for side in ("user", "item"):
        key = getattr(definition, side)
        if key is None:
            continue
        mine = getattr(row, side)
        known = [o for o in log if getattr(o, side) == mine and _at(o, definition) < row.time and mine is not None]
        known.sort(key=lambda o: (_at(o, definition), _tie(o), o.clicked))
        values |= _side(log, row, known, side, definition)
    return values


def _side(log: Sequence[Row], row: Row, known: Sequence[Row], side: str, definition: Definition) -> dict[str, float]:
    crossed = definition.topics if side == "user" else definition.attributes
    kind = "residual" if side == "user" else "rate"
    of = "topics" if side == "user" else "attributes"
    windows = {}
    for w in definition.windows:
        now = row.time // w.width
        windows[w.name] = [o for o in known if now - w.buckets < _at(o, definition) // w.width <= now]
    slots = [c.slot(v) for c, v in zip(crossed, getattr(row, of), strict=True)]
    alike = [
        [o for o in known if c.slot(getattr(o, of)[n]) == slot]
        for n, (c, slot) in enumerate(zip(crossed, slots, strict=True))
    ]
    rate = _rate(log, known, definition) if known else NAN

    def mean(outcomes: Sequence[Row]) -> float:
        if side == "item":
            return _smooth(sum(o.clicked for o in outcomes), len(outcomes), rate)
        return sum(_residual(log, o, definition) for o in outcomes) / 2**20 / (len(outcomes) + 2.0)

    values = {f"{side}_views": math.log1p(len(known))}
    values |= {f"{side}_views_{name}": math.log1p(len(outcomes)) for name, outcomes in windows.items()}
    for c, slot, outcomes in zip(crossed, slots, alike, strict=True):
        values[f"{side}_x_{c.field}_views"] = math.log1p(len(outcomes)) if slot >= 0 else NAN
    seen = max((o.time for o in known), default=0)
    latest = max((_at(o, definition) for o in known), default=0)
    values[f"{side}_gap"] = math.log1p(max(row.time - seen, 0) / 1e6)
    values[f"{side}_age"] = math.log1p(max(row.time - latest, 0) / 1e6)
    values[f"{side}_rate"] = rate
    if side == "user":
        values["user_residual"] = mean(known)
    values |= {f"{side}_{kind}_last_{k}": mean(known[-k:]) for k in definition.last}
    values |= {f"{side}_{kind}_{name}": mean(outcomes) for name, outcomes in windows.items()}
    for c, slot, outcomes in zip(crossed, slots, alike, strict=True):
        values[f"{side}_x_{c.field}_{kind}"] = mean(outcomes) if slot >= 0 else NAN
    return values if known else dict.fromkeys(values, NAN)
