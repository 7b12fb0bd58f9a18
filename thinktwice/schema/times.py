"""Reading of times and of values derived from them, for logs and requests.

A time with an offset, and Unix time, is an instant. A time without one (text without an offset, a timestamp without a zone,
a date, ``yymmddhh``) is local time in the zone of the schema (default UTC). Hour and weekday are local to that zone.

Local times at a change of the clocks: a time that occurs twice (clocks go back) is the first of the two instants; a time
that does not occur (clocks go forward) is read with the offset before the change, so 02:30 in a gap of an hour is the
instant shown as 03:30.

Text is a date, or a date and a time with ``T`` or a space between, to the hour, minute, second or fraction of a second, then an
offset or none, with or without a space before it: ``Z``, ``UTC``, ``+09``, ``+0900``, ``+09:00``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, TypeVar, overload
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from thinktwice.schema.limits import EARLIEST_US, LATEST_US
from thinktwice.schema.numbers import SPACE, holds_text
from thinktwice.schema.values import as_series, texts

Derived = Literal["hour", "weekday"]
Micros = TypeVar("Micros", int, npt.NDArray[np.int64])
Ints = npt.NDArray[np.int64]

FORMS = "2024-03-01, 2024-03-01 10:00, 2024-03-01T10:00:00 or 2024-03-01T10:00:00.123, with an offset (Z, +09, +0900, +09:00) or without"
TEXT = (
    r"^([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[ Tt]([0-9]{2})(?::([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?)?"
    r"(?: ?(?:([zZ]|UTC)|([+-])([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2}))?)?))?)?$"
)
_TEXT = re.compile(TEXT)
_SECOND = 1_000_000
_HOUR, _DAY = 3600 * _SECOND, 86_400 * _SECOND
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, eq=False)
class Zone:
    """One time zone, as changes of its offset from UTC; all in microseconds.

    Attributes:
        changes: instants [n - 1] at which the offset changes.
        local_changes: later of the two local times at that instant [n - 1].
        offsets: [n]; ``offsets[i]`` is valid before ``changes[i]``.
    """

    name: str
    changes: Ints
    local_changes: Ints
    offsets: Ints

    @overload
    def local(self, instant: int) -> int: ...
    @overload
    def local(self, instant: Ints) -> Ints: ...
    def local(self, instant: int | Ints) -> int | Ints:
        """The local time at an instant."""
        return instant + self._offset(self.changes, instant)

    @overload
    def instant(self, local: int) -> int: ...
    @overload
    def instant(self, local: Ints) -> Ints: ...
    def instant(self, local: int | Ints) -> int | Ints:
        """The instant of a local time; at a change of the clocks as described in the module's docstring."""
        return local - self._offset(self.local_changes, local)

    def _offset(self, changes: Ints, at: int | Ints) -> int | Ints:
        if isinstance(at, int):
            return int(self.offsets[bisect_right(changes, at)]) if len(changes) else int(self.offsets[0])
        return self.offsets[np.searchsorted(changes, at, side="right")]


@lru_cache(maxsize=32)
def zone_named(name: str) -> Zone:
    """The zone with an IANA name, from the data of the package ``tzdata``, which is independent of the system's data.

    Raises:
        ValueError: there is no such zone.
    """
    data = resources.files("tzdata")
    if name not in data.joinpath("zones").read_text(encoding="utf-8").split():
        raise ValueError(f"{name!r} is not a time zone: give an IANA name such as Europe/Berlin, Asia/Tokyo or UTC")
    with data.joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        zone = ZoneInfo.from_file(file, key=name)

    def offset(instant: int) -> int:  # seconds
        offset_now = datetime.fromtimestamp(instant, zone).utcoffset()
        assert offset_now is not None
        return round(offset_now.total_seconds())

    first, last = EARLIEST_US // _SECOND - 86_400, LATEST_US // _SECOND + 86_400
    days = range(first, last, 86_400)
    known = [offset(day) for day in days]
    changes, offsets = [], [known[0]]
    for day, before, after in zip(days, known, known[1:], strict=False):
        if before != after:
            low, high = day, day + 86_400  # the change is in (low, high]
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == before else (low, middle)
            changes.append(high)
            offsets.append(after)
    later = [at + max(offsets[i], offsets[i + 1]) for i, at in enumerate(changes)]
    arrays = (np.array(values, np.int64) * _SECOND for values in (changes, later, offsets))
    return Zone(name, *arrays)


def derive(what: Derived, local: Micros) -> Micros:
    """The hour (0 .. 23) or the weekday (0 is Monday) of a local time (:meth:`Zone.local`)."""
    return local // _HOUR % 24 if what == "hour" else (local // _DAY + 3) % 7


def in_window(instant: int) -> bool:
    """Whether an instant is within the years that a log may cover."""
    return EARLIEST_US <= instant <= LATEST_US


def instant_of(value: Any, zone: Zone) -> int:
    """The instant of a text, a date or a datetime, in microseconds.

    Raises:
        ValueError: it is not a time.
    """
    if isinstance(value, str):
        return _of_text(value, zone)
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            raise ValueError("is not a time")
        return zone.instant(int(value.astype("datetime64[us]").astype(np.int64)))
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            return (value.astimezone(timezone.utc).replace(tzinfo=None) - _EPOCH) // timedelta(microseconds=1)
        return zone.instant((value - _EPOCH) // timedelta(microseconds=1))
    if isinstance(value, date):
        return zone.instant((value - _EPOCH.date()).days * _DAY)
    raise ValueError("is not a time")


def _of_text(text: str, zone: Zone) -> int:
    match = _TEXT.fullmatch(text.strip(SPACE))
    if match is None:
        raise ValueError("is not a time")
    year, month, day, hour, minute, second, fraction, utc, sign, *offset = match.groups()
    moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    local = (moment - _EPOCH) // timedelta(microseconds=1) + int((fraction or "").ljust(6, "0")[:6])
    if utc:
        return local
    if not sign:
        return zone.instant(local)
    hours, minutes, seconds = (int(part or 0) for part in offset)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError("is not a time")
    east = (hours * 3600 + minutes * 60 + seconds) * _SECOND
    return local - east if sign == "+" else local + east


@dataclass(frozen=True)
class Instants:
    """The times of a column: ``micros``: null for values that are not times; ``zoneless``: whether it is local time."""

    micros: pl.Series
    zoneless: pl.Series


def is_time(kind: pa.DataType) -> bool:
    """Whether a type is a date or timestamp type."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def instants(values: pa.Array, zone: Zone) -> Instants:
    """The times of an array of texts, dates or timestamps; null for other types."""
    kind = values.type
    if holds_text(kind):
        return _of_texts(texts(values), zone)
    if is_time(kind):
        micros = _micros(values)
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            return Instants(micros, pl.repeat(False, len(values), eager=True))
        return Instants(localized(micros, zone), micros.is_not_null())
    return Instants(pl.repeat(None, len(values), dtype=pl.Int64, eager=True), pl.repeat(False, len(values), eager=True))


def _micros(values: pa.Array) -> pl.Series:
    """Dates and timestamps as microseconds, clipped to 64 bits."""
    if pa.types.is_date32(values.type):
        count, unit_us = as_series(values.view(pa.int32())).cast(pl.Int64), _DAY
    else:
        count = as_series(values.view(pa.int64()))
        unit = "ms" if pa.types.is_date64(values.type) else values.type.unit
        if unit == "ns":
            return count // 1000
        unit_us = {"s": _SECOND, "ms": 1000, "us": 1}[unit]
    farthest = 2**62 // unit_us
    return count.clip(-farthest, farthest) * unit_us


def localized(local: pl.Series, zone: Zone) -> pl.Series:
    """Instants of local times, both microseconds or null."""
    return on_present(local, zone.instant)


def on_present(values: pl.Series, rule: Callable[[Ints], Ints]) -> pl.Series:
    """Apply a function of arrays to a series of microseconds; null stays null."""
    out = pl.Series(rule(values.fill_null(0).to_numpy()))
    return pl.select(pl.when(values.is_not_null()).then(out)).to_series()


def _of_texts(text: pl.Series, zone: Zone) -> Instants:
    text = text.str.strip_chars(SPACE)
    parts = text.str.extract_groups(TEXT).struct.unnest()
    parts.columns = ["year", "month", "day", "hour", "minute", "second", "fraction", "utc", "sign", "h", "m", "s"]
    groups = ["year", "month", "day", "hour", "minute", "second", "h", "m", "s"]
    east = pl.col("h") * 3600 + pl.col("m") * 60 + pl.col("s")
    # A date that does not exist (31 April) has no microseconds.
    moment = pl.datetime("year", "month", "day", "hour", "minute", "second", ambiguous="null").cast(pl.Int64)
    matched = (
        parts.with_columns(
            pl.col(groups).cast(pl.Int64).fill_null(0),
            pl.col("fraction").fill_null("").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64),
            pl.col("year").is_not_null().alias("matched"),
        )
        .with_columns(
            (pl.col("matched") & pl.col("month").is_between(1, 12) & pl.col("day").is_between(1, _days_of_month()))
            .and_(pl.col("hour") < 24, pl.col("minute") < 60, pl.col("second") < 60, pl.col("year") > 0)
            .and_(pl.col("h") < 24, pl.col("m") < 60, pl.col("s") < 60)
            .alias("good")
        )
        .with_columns(
            *(pl.when("good").then(name).otherwise(1).alias(name) for name in ("year", "month", "day")),
            *(pl.when("good").then(name).otherwise(0).alias(name) for name in ("hour", "minute", "second")),
        )
        .select(
            pl.when("good").then(moment + pl.col("fraction")).alias("local"),
            pl.col("sign").is_not_null() | pl.col("utc").is_not_null(),
            (east * pl.when(pl.col("sign") == "-").then(-_SECOND).otherwise(_SECOND)).fill_null(0).alias("east"),
        )
    )
    local, fixed, east_us = matched["local"], matched["sign"], matched["east"]
    micros = pl.select(pl.when(fixed).then(local - east_us).otherwise(localized(local, zone))).to_series()
    return Instants(micros, micros.is_not_null() & ~fixed)


def _days_of_month() -> pl.Expr:
    year, month = pl.col("year"), pl.col("month")
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    return (
        pl.when(month == 2)
        .then(pl.when(leap).then(29).otherwise(28))
        .when(month.is_in([4, 6, 9, 11]))
        .then(30)
        .otherwise(31)
    )
