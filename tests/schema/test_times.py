"""One time is one instant, in a log and in a request, whatever writes it; the clocks of a zone are one table."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.schema.limits import EARLIEST_US, LATEST_US
from thinktwice.schema.times import derive, instant_of, instants, zone_named

ZONES = ["UTC", "Asia/Tokyo", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Africa/Casablanca",
         "America/Sao_Paulo", "Pacific/Apia", "Antarctica/Troll", "Africa/Monrovia", "Asia/Kathmandu"]  # fmt: skip
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
INSTANTS = st.integers(EARLIEST_US, LATEST_US)


def oracle_of(name: str) -> ZoneInfo:
    """The same data as ours; that of the machine may be older."""
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def near_changes(name: str) -> st.SearchStrategy[int]:
    """Local times around the changes of the clocks, and any others."""
    changes = zone_named(name).local_changes.tolist()
    if not changes:
        return INSTANTS
    return INSTANTS | st.builds(
        lambda at, off: at + off, st.sampled_from(changes), st.integers(-3 * 3600 * 10**6, 3 * 3600 * 10**6)
    )


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(ZONES), st.data())
def test_clocks_are_those_of_the_time_zone(name: str, data: st.DataObject) -> None:
    """The oracle is Python's zoneinfo; its fold=0 is the first of two instants, and the old clock in a gap."""
    zone, oracle = zone_named(name), oracle_of(name)
    local = data.draw(near_changes(name))
    shown = datetime(1970, 1, 1) + timedelta(microseconds=local)
    assert zone.instant(local) == micros(shown.replace(tzinfo=oracle))
    instant = zone.instant(local)
    there = (EPOCH + timedelta(microseconds=instant)).astimezone(oracle)
    clock = zone.local(instant)
    assert clock == micros(there.replace(tzinfo=timezone.utc))
    assert (derive("hour", clock), derive("weekday", clock)) == (there.hour, there.weekday())
    both = np.array([local, instant])
    assert zone.instant(both).tolist() == [zone.instant(int(v)) for v in both]
    assert derive("hour", zone.local(both)).tolist() == [derive("hour", zone.local(int(v))) for v in both]
    assert derive("weekday", zone.local(both)).tolist() == [derive("weekday", zone.local(int(v))) for v in both]


def test_where_the_clocks_change() -> None:
    berlin = zone_named("Europe/Berlin")
    skipped, twice = instant_of("2024-03-31 02:30", berlin), instant_of("2024-10-27 02:30", berlin)
    assert skipped == instant_of("2024-03-31T01:30Z", berlin) == instant_of("2024-03-31 03:30", berlin)
    assert twice == instant_of("2024-10-27T00:30Z", berlin), "the first of two"
    assert instant_of("2024-10-27 03:00", berlin) - twice == 90 * 60 * 10**6


#: What is read, as microseconds; zone-less ones in Tokyo.
READ = {
    "2024-03-01": "2024-02-29T15:00:00+00:00", "2024-03-01 10": "2024-03-01T01:00:00+00:00", "2024-03-01T10:30": "2024-03-01T01:30:00+00:00",
    "2024-03-01t10:00:00": "2024-03-01T01:00:00+00:00", " 2024-03-01 10:00:00.5\n": "2024-03-01T01:00:00.500000+00:00",
    "2024-03-01 10:00:00,123456789": "2024-03-01T01:00:00.123456+00:00",
    **dict.fromkeys(("2024-03-01 10:00:00+00", "2024-03-01 10:00:00+0000", "2024-03-01 10:00:00+00:00", "2024-03-01T10:00:00Z", "2024-03-01 10:00:00z",
                     "2024-03-01 10:00 UTC", "2024-03-01 10:00:00 +00", "2024-03-01T10:00-00:00", "2024-03-01T10Z",
                     "2024-03-01 19:00:00+09", "2024-03-01 19:00:00 +0900", "2024-03-01T19:00:00.000+09:00", "2024-03-01 04:30-05:30",
                     "2024-03-01 10:53:28+00:53:28"), "2024-03-01T10:00:00+00:00"),
}  # fmt: skip
UNREAD = ["", " ", "x", "2024", "2024-3-1", "20240301", "01.03.2024", "2024-02-30", "2023-02-29", "2024-13-01", "2024-00-01", "0000-01-01", "2024-03-01 24:00", "2024-03-01 10:60",
          "2024-03-01 10:00:60", "2024-03-01  10:00", "2024-03-01 10:00+9", "2024-03-01 10:00+24", "2024-03-01 10:00+0960", "2024-03-01+09", "2024-03-01 10:00 CET",
          "2024-03-01 10:00:00.", "2024-03-01 10:00:00.1234567890", "2024-03-01 10:00  Z", "\u0662024-03-01", "1710900000", "-2024-03-01", "2024-W09-5"]  # fmt: skip


def test_the_forms_of_text() -> None:
    zone = zone_named("Asia/Tokyo")
    found = instants(pa.array([*READ, *UNREAD, None]), zone)
    expected = [micros(datetime.fromisoformat(text)) for text in READ.values()]
    assert found.micros.to_list() == [*expected, *[None] * (len(UNREAD) + 1)]
    assert [instant_of(text, zone) for text in READ] == expected
    for text in UNREAD:
        with pytest.raises(ValueError, match=r"."):
            instant_of(text, zone)
    zoneless = dict(zip([*READ, *UNREAD], found.zoneless.to_list(), strict=False))
    assert [text for text, it_is in zoneless.items() if it_is] == list(READ)[:6]


PART = st.sampled_from(
    [
        "2024",
        "1969",
        "0000",
        "9999",
        "03",
        "3",
        "31",
        "00",
        "12",
        "23",
        "24",
        "59",
        "60",
        "-",
        ":",
        " ",
        "T",
        ".",
        "5",
        "123456",
        "Z",
        "UTC",
        "+",
        "+09",
        "+0900",
        "+09:00",
        "−",
    ]
)
ISO = st.datetimes(datetime(1900, 1, 1), datetime(2199, 1, 1), timezones=st.none() | st.timezones()).map(
    lambda m: m.isoformat()
)
NEARLY = st.builds(
    lambda y, mo, d, sep, h, mi, s, f, o: f"{y:04d}-{mo:02d}-{d:02d}{sep}{h:02d}:{mi:02d}:{s:02d}{f}{o}",
    st.sampled_from([0, 1, 1970, 2024, 2023, 9999]), st.integers(0, 13), st.integers(0, 32), st.sampled_from(["T", " ", "t", ""]), st.integers(0, 25),
    st.integers(0, 61), st.integers(0, 61), st.sampled_from(["", ".1", ".999999999", ",5", "."]), st.sampled_from(["", "Z", " Z", "+01", "-0130", "+23:59", "+2400", " UTC", "UTC"]),
)  # fmt: skip


@settings(max_examples=1000, deadline=None)
@given(ISO | NEARLY | st.lists(PART, max_size=12).map("".join), st.sampled_from(ZONES))
def test_a_column_and_a_request_read_the_same_texts(text: str, name: str) -> None:
    zone = zone_named(name)
    try:
        one: int | None = instant_of(text, zone)
    except ValueError:
        one = None
    assert instants(pa.array([text, text.encode()], pa.string()), zone).micros.to_list() == [one, one]


@settings(max_examples=200, deadline=None)
@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30)),
    st.sampled_from(ZONES),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
def test_types_of_times_and_their_text_are_one_instant(moment: datetime, name: str, unit: str) -> None:
    zone, oracle = zone_named(name), oracle_of(name)
    moment = moment.replace(microsecond=0, fold=0)  # a text does not say which of two it is: the first
    expected = micros(moment.replace(tzinfo=oracle))
    aware = datetime.fromtimestamp(expected / 1e6, timezone.utc)
    own: list[Any] = [
        moment,
        moment.isoformat(),
        moment.isoformat(" "),
        aware,
        aware.isoformat(),
        np.datetime64(moment, unit),
    ]
    assert {instant_of(value, zone) for value in own} == {expected}
    columns = [
        pa.array([moment], pa.timestamp(unit)),
        pa.array([aware], pa.timestamp(unit, "Asia/Tokyo")),
        pa.array([moment.isoformat()]).cast(pa.binary()),
    ]
    assert [instants(column, zone).micros.to_list() for column in columns] == [[expected]] * 3
    day = micros(datetime(moment.year, moment.month, moment.day, tzinfo=oracle))
    assert instant_of(moment.date(), zone) == day
    for kind in (pa.date32(), pa.date64()):
        assert instants(pa.array([moment.date()], kind), zone).micros.to_list() == [day]


def test_moments_too_far_away_are_outside_and_not_somewhere_else() -> None:
    far = pa.array([2**62, -(2**62)], pa.int64()).view(pa.timestamp("s"))
    found = instants(far, zone_named("UTC")).micros.to_list()
    assert found[0] > LATEST_US and found[1] < EARLIEST_US
    assert instants(pa.array([2**31 - 1], pa.int32()).view(pa.date32()), zone_named("UTC")).micros[0] > LATEST_US


@pytest.mark.parametrize("name", ["Mars/Olympus", "+09:00", "../etc/passwd", "", "utc", "Europe", "zones"])
def test_a_zone_has_an_iana_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone: give an IANA name"):
        zone_named(name)


@pytest.mark.parametrize("value", [None, 5, 1.5, np.datetime64("nat"), [], timedelta(1)])
def test_other_values_are_no_times(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        instant_of(value, zone_named("UTC"))
    assert instant_of(date(1970, 1, 1), zone_named("UTC")) == 0
