"""Assignment: frozen vectors, ramps that move nobody, independent salts, and a vectorised form that is the same function."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.experiment.files import COVERAGES, bad_units, coverages, experiment, grouped, repeatable, salts, units
from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import assign, bucket_of, buckets_of, layout_of, places_of
from thinktwice.experiment.file import BUCKETS, UNIT
from thinktwice.xxh64 import xxh64_of_texts

VECTORS = json.loads((Path(__file__).parent / "assignment_vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exp1:user-1", 7600611102981193093),
        ("exp1:a", 16559623751307919216),
        ("exp1:a:b:c", 15233539242890131739),
        ("exp1:u%20x", 10657001512858179105),
        ("exp2:user-1", 7494604026224488081),
        ("exp1:" + "x" * 4096, 16838352207892883454),
    ],
)
def test_hashes_seen_in_the_proxy(text: str, expected: int) -> None:
    salt, unit = text.split(":", 1)
    assert bucket_of(salt, unit) == expected % BUCKETS
    assert int(xxh64_of_texts(pa.array([unit]), f"{salt}:")[0]) == expected


def test_frozen_vectors() -> None:
    assert len(VECTORS["hashes"]) > 100
    for v in VECTORS["hashes"]:
        assert bucket_of(v["salt"], v["unit"]) == v["bucket"] == int(v["hash"]) % BUCKETS
        assert bool(UNIT.fullmatch(v["unit"])) == v["allowed"]
    for frozen in VECTORS["layouts"]:
        layout = layout_of([experiment(arms=len(frozen["arms"]), coverage=frozen["coverage"])])
        ranges = [{"start": r.start, "stop": r.stop, "arm": r.arm, "enrolled": r.enrolled} for r in layout.ranges]
        assert ranges == frozen["ranges"]
        for v in frozen["units"]:
            found = assign(layout, v["unit"])
            assert (found.arm, found.enrolled) == (v["arm"], v["enrolled"])


@repeatable
@given(st.lists(st.text(max_size=100), max_size=40), st.text(max_size=40))
def test_the_vectorised_hash_is_the_same(texts: list[str], prefix: str) -> None:
    texts = [t.encode("utf-8", "ignore").decode() for t in texts]
    prefix = prefix.encode("utf-8", "ignore").decode()
    expected = [xxhash.xxh64_intdigest((prefix + t).encode()) for t in texts]
    assert xxh64_of_texts(pa.array(texts, pa.string()), prefix).tolist() == expected
    sliced = pa.chunked_array([pa.array(["skipped", *texts], pa.string())[1:]])
    assert xxh64_of_texts(sliced, prefix).tolist() == expected


@repeatable
@given(
    st.lists(st.one_of(units, bad_units, st.none(), st.sampled_from(["", " ", "\t", " a ", "a\n"])), max_size=30), salts
)
def test_buckets_of_a_column_are_those_of_its_units(column: list[str | None], salt: str) -> None:
    column = [None if c is None else c.encode("utf-8", "ignore").decode() for c in column]
    layout = layout_of([experiment(salt=salt, coverage=0.3, arms=3)])
    buckets = buckets_of(salt, pa.array(column, pa.string()))
    places = places_of(layout, buckets)
    for unit, bucket, place in zip(column, buckets, places, strict=True):
        found = assign(layout, unit)
        assert (found.bucket if found.bucket is not None else -1) == bucket
        if place < 0:
            assert found.reason in ("no_unit", "bad_unit") and (found.arm, found.enrolled) == ("control", False)
        else:
            r = layout.ranges[place]
            assert (found.experiment, found.arm, found.enrolled) == (r.experiment, r.arm, r.enrolled)


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        (None, "no_unit"), ("", "no_unit"), ("   ", "no_unit"), ("ü", "bad_unit"), ("a b", "bad_unit"), ("a,b", "bad_unit"),
        ("x" * 257, "bad_unit"), ("x" * 8192, "bad_unit"), ("u%20x", "bad_unit"), ("a\n", "bad_unit"), ("a\x00", "bad_unit"),
    ],
)  # fmt: skip
def test_a_missing_or_bad_unit_gets_control_and_is_not_enrolled(unit: str | None, reason: str) -> None:
    found = assign(layout_of([experiment(coverage=1.0)]), unit)
    assert (found.arm, found.enrolled, found.bucket, found.reason) == ("control", False, None, reason)


@repeatable
@given(st.integers(2, 10), coverages)
def test_ranges_cover_all_buckets_and_arms_are_equal(arms: int, coverage: float) -> None:
    try:
        file = experiment(arms=arms, coverage=coverage)
    except ValueError as error:
        assert "enrols no users" in str(error)
        return
    ranges = layout_of([file]).ranges
    assert ranges[0].start == 0 and ranges[-1].stop == BUCKETS
    assert all(a.stop == b.start for a, b in itertools.pairwise(ranges))
    widths = {r.arm: r.width for r in ranges if r.enrolled}
    assert set(widths) == {a.name for a in file.arms} and len(set(widths.values())) == 1
    assert all(r.arm == "control" for r in ranges if not r.enrolled)
    # The share of the owned buckets that is enrolled is the coverage, but for less than one bucket an arm and the remainder.
    assert 0 <= round(coverage * BUCKETS) - sum(widths.values()) < 2 * arms


@repeatable
@given(st.integers(2, 6), st.lists(coverages, min_size=2, max_size=6).map(sorted))
def test_a_ramp_moves_nobody_enrolled(arms: int, steps: list[float]) -> None:
    enrolled: dict[int, str] = {}
    for coverage in steps:
        if int(coverage * (BUCKETS // arms)) < 1:
            continue
        ranges = layout_of([experiment(arms=arms, coverage=coverage)]).ranges
        now = {b: r.arm for r in ranges if r.enrolled for b in range(r.start, r.stop)}
        assert all(now[b] == arm for b, arm in enrolled.items())
        enrolled = now


def test_experiments_of_a_group_share_no_unit_and_leave_the_holdout_alone() -> None:
    first = grouped("one", 1000, 5000, coverage=1.0, holdout=800)
    second = grouped("two", 5000, 9000, coverage=0.5, holdout=800, arms=3)
    ranges = layout_of([second, first]).ranges
    assert [(r.start, r.stop, r.experiment) for r in ranges if r.experiment in ("none", "holdout")] == [
        (0, 1000, "none"), (9000, 9200, "none"), (9200, 10000, "holdout"),
    ]  # fmt: skip
    assert not any(r.enrolled for r in ranges if r.experiment in ("none", "holdout"))
    assert sum(r.width for r in ranges) == BUCKETS


def test_testers_get_their_arm_and_are_not_enrolled() -> None:
    layout = layout_of([experiment(coverage=1.0, testers={"t1": ["me"], "control": ["you"]})])
    me = assign(layout, " me ")
    assert (me.experiment, me.arm, me.enrolled, me.reason) == ("tester", "t1", False, "tester")
    assert assign(layout, "you").arm == "control"
    assert assign(layout, "mee").reason == "split"


def test_a_split_has_one_salt() -> None:
    with pytest.raises(ValueError, match="one salt"):
        layout_of([experiment("one"), experiment("two")])
    with pytest.raises(ExperimentError, match="overlap"):
        layout_of([grouped("one", 0, 5000), grouped("two", 4000, 9000)])
    with pytest.raises(ValueError, match="at least one"):
        layout_of([])


def test_two_salts_are_independent_and_each_is_uniform() -> None:
    ids = pa.array([f"user-{i}" for i in range(100_000)])
    first, second = buckets_of("exp1", ids), buckets_of("exp2", ids)
    for bucket in (first, second):
        assert stats.chisquare(np.bincount(bucket // 100, minlength=100)).pvalue > 1e-3
    table = np.histogram2d(first // 2500, second // 2500, bins=4)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_the_share_of_each_arm_is_the_coverage() -> None:
    ids = pa.array([f"u{i}" for i in range(200_000)])
    for coverage in COVERAGES:
        layout = layout_of([experiment("ramp", coverage=coverage)])
        place = places_of(layout, buckets_of("ramp", ids))
        counts = np.bincount(place, minlength=len(layout.ranges))
        for count, r in zip(counts, layout.ranges, strict=True):
            expected = len(ids) * r.width / BUCKETS
            assert abs(count - expected) < 4.5 * np.sqrt(expected)
