"""Splits: shares, ties, seeds, and independence of the order of rows."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from thinktwice.data.row_ids import row_ids
from thinktwice.data.split_spec import parse_split
from thinktwice.data.splits import PART_NAMES, PARTS, SplitSpec, assign_split, given_parts
from thinktwice.errors import DataError
from thinktwice.schema.times import zone_named


def ids(rows: int) -> np.ndarray:
    return np.array(row_ids("test", np.arange(rows)).to_pylist())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=20, max_size=200))
def test_a_time_split_never_cuts_through_an_instant(times: list[int]) -> None:
    time = np.array(times)
    codes = assign_split(time, ids(len(time)), SplitSpec())
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        if (codes == earlier).any() and (codes == later).any():
            assert time[codes == earlier].max() < time[codes == later].min()


def test_a_time_split_has_its_shares() -> None:
    time = np.random.default_rng(0).permutation(1_000_209)
    sizes = np.bincount(assign_split(time, np.zeros(0), SplitSpec()), minlength=len(PARTS))
    assert np.abs(sizes - [800_168, 100_021, 100_020]).max() <= 2


def test_a_random_split_follows_ids_and_seed_alone() -> None:
    names, time = ids(20_000), np.zeros(20_000)
    spec = SplitSpec(kind="random", valid=0.2, test=0.1, seed=3)
    codes = assign_split(time, names, spec)
    assert np.abs(np.bincount(codes) / 20_000 - [0.7, 0.2, 0.1]).max() < 0.01
    order = np.random.default_rng(1).permutation(20_000)
    assert (assign_split(time, names[order], spec) == codes[order]).all()
    assert (assign_split(time[:100], names[:100], spec) == codes[:100]).all()
    other = assign_split(time, names, SplitSpec(kind="random", valid=0.2, test=0.1, seed=4))
    assert 0.4 < (other == codes).mean() < 0.65  # as often equal as chance makes it: 0.54


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SplitSpec(valid=0.5, test=0.5)


def test_shares_below_one_row_leave_the_last_instant_to_test() -> None:
    times = np.arange(10, dtype=np.int64)
    ids = np.array(row_ids("parquet", np.arange(10)).to_pylist())
    parts = assign_split(times, ids, SplitSpec(kind="time", valid=0.05, test=0.05))
    assert parts.tolist() == [0] * 9 + [2]


ZONES = ("UTC", "Asia/Tokyo", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe")
instants = st.lists(
    st.integers(1_700_000_000, 1_700_000_000 + 400 * 86_400).map(lambda s: s * 1_000_000), min_size=1, max_size=80
)


def local_day(instant: int, zone: str) -> date:
    return datetime.fromtimestamp(instant / 1e6, timezone.utc).astimezone(ZoneInfo(zone)).date()


@settings(max_examples=100, deadline=None)
@given(instants, st.integers(1, 60), st.sampled_from(ZONES))
def test_test_days_are_the_last_calendar_days_of_the_zone(times: list[int], days: int, zone: str) -> None:
    spec = parse_split(f"days:{days}")
    codes = assign_split(np.array(times), ids(len(times)), spec, zone_named(zone))
    last = max(local_day(t, zone) for t in times)
    for time, code in zip(times, codes.tolist(), strict=True):
        age = (last - local_day(time, zone)).days
        assert code == (2 if age < days else 1 if age < 2 * days else 0)


@settings(max_examples=100, deadline=None)
@given(instants, st.dates(date(2023, 11, 1), date(2025, 1, 1)), st.integers(1, 60), st.sampled_from(ZONES))
def test_dates_begin_at_midnight_of_the_zone(times: list[int], begin: date, length: int, zone: str) -> None:
    end = begin + timedelta(days=length)
    codes = assign_split(np.array(times), ids(len(times)), parse_split(f"dates:{begin},{end}"), zone_named(zone))
    for time, code in zip(times, codes.tolist(), strict=True):
        day = local_day(time, zone)
        assert code == (0 if day < begin else 1 if day < end else 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=60))
def test_a_column_decides_and_the_latest_train_rows_replace_a_missing_validation(rows: list[tuple[int, int]]) -> None:
    time, given = (np.array(column) for column in zip(*rows, strict=True))
    codes = assign_split(time, ids(len(rows)), parse_split("column:part"), None, given.astype(np.int8))
    if (given == 1).any() or not (given == 0).any():
        assert codes.tolist() == given.tolist()
        return
    assert ((codes == 2) == (given == 2)).all() and (codes == 1).any()
    if (codes == 0).any():
        assert time[codes == 0].max() < time[codes == 1].min()


def write_raw(folder: Path, values: pl.Series) -> pl.Series:
    names = pl.Series(ids(len(values)))
    pl.DataFrame({"row_id": names, "part": values}).write_parquet(folder / "log.parquet")
    return names


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Binary])
def test_the_parts_of_a_column_follow_the_row_ids(dtype: type[pl.DataType], tmp_path: Path) -> None:
    words = [w for name in PART_NAMES for w in (name, name.upper(), name.title())]
    values = pl.Series(words).cast(dtype)
    names = write_raw(tmp_path, values)
    order = np.random.default_rng(0).permutation(len(words))[:-3]  # quarantined rows are in no part
    found = given_parts(tmp_path, "part", names[order])
    assert found.tolist() == [PART_NAMES[words[n].lower()] for n in order]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", "test", None], "1 of 3 rows have no value; write train, valid or test"),
        (["train", "holdout", "holdout"], "2 of 3 rows have the value 'holdout'"),
        ([0, 1, 2], "1 of 3 rows have the value '"),
        ([["train"], [], None], "has type large_list<element: large_string>"),
    ],
)
def test_a_value_that_names_no_part_is_an_error(values: list[object], message: str, tmp_path: Path) -> None:
    names = write_raw(tmp_path, pl.Series(values))
    with pytest.raises(DataError) as caught:
        given_parts(tmp_path, "part", names)
    assert message in str(caught.value)


def test_a_missing_split_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    names = write_raw(tmp_path, pl.Series(["train"]))
    with pytest.raises(DataError, match=r"--split column:prt: the log has no such column; did you mean 'part'\?"):
        given_parts(tmp_path, "prt", names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiem", "did you mean time?"),
        ("colum:x", "did you mean column?"),
        ("column:", "needs 'column'"),
        ("days:0", "greater than or equal to 1"),
        ("days:soon", "valid integer"),
        ("dates:2024-03-08", "needs two dates"),
        ("dates:2024-03-08,2024-03-01", "swap the dates"),
        ("dates:2024-03-08,2024-13-01", "valid date"),
        ("time:7", "time takes no value"),
        ("", "choose one of time, random"),
    ],
)
def test_a_text_that_is_no_split_is_explained(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_split(text)
    assert message in str(caught.value) and repr(text) in str(caught.value) and "\n" not in str(caught.value)


specs = st.one_of(
    st.sampled_from(["time", "random"]),
    st.integers(1, 3650).map(lambda n: f"days:{n}"),
    st.text(min_size=1).map(lambda name: f"column:{name}"),
    st.tuples(st.dates(max_value=date(2100, 1, 1)), st.integers(1, 99)).map(
        lambda pair: f"dates:{pair[0]},{pair[0] + timedelta(days=pair[1])}"
    ),
)


@given(specs, st.integers(0, 9))
def test_a_split_is_read_back_from_its_text_and_its_record(text: str, seed: int) -> None:
    spec = parse_split(text, seed)
    assert spec.text == text and parse_split(spec.text, seed) == spec
    assert SplitSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.seed == (seed if text == "random" else 0)
    assert PARTS == ("train", "valid", "test")
