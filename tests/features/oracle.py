"""Features by their definition, row by row in plain Python."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from typing import Any

from tests.features.conftest import Row
from thinktwice.schema import LogSchema


def statistics(rows: list[Row], schema: LogSchema, entity: str, key: str, at: datetime) -> list[float] | None:
    """Statistics of one user or item as of the last day that changed one of its windows; None before the first."""
    assert schema.statistics is not None
    column = schema.key_of(entity)  # type: ignore[arg-type]
    days = [(r["event_time"].date(), r["label"]) for r in rows if r[column] == key]
    changes: set[date] = set()
    for window in schema.statistics.windows_days:
        for day, _ in days:
            changes |= {day + timedelta(days=1)} | ({day + timedelta(days=window + 1)} if window else set())
    past = [c for c in changes if c <= at.date()]
    if not past:
        return None
    change = max(past)
    earlier = [r["label"] for r in rows if r["event_time"].date() < change]
    prior = sum(earlier) / len(earlier)
    out = []
    for window in schema.statistics.windows_days:
        seen = [label for day, label in days if day < change and (not window or day >= change - timedelta(days=window))]
        out += [math.log2(1 + len(seen)), (sum(seen) + 20 * prior) / (len(seen) + 20)]
    return out


def sequence(rows: list[Row], schema: LogSchema, name: str, user: str, before: datetime) -> list[str]:
    """Values of one user's sequence from rows strictly before an instant, newest first."""
    (spec,) = [s for s in schema.sequences if s.name == name]
    entering = [
        (r["event_time"], r["row_id"], r[spec.of])
        for r in rows
        if r["user_id"] == user
        and r["event_time"] < before
        and r[spec.of] is not None
        and (r["label"] == 1 or not spec.clicks_only)
    ]
    return [value for _, _, value in sorted(entering, reverse=True)[: spec.length]]


def as_of(table: list[dict[str, Any]], column: str, key: str, at: datetime) -> dict[str, Any] | None:
    """The newest row of a change-point table that is valid at an instant."""
    valid = [r for r in table if r[column] == key and r["event_timestamp"] <= at]
    return max(valid, key=lambda r: r["event_timestamp"]) if valid else None
