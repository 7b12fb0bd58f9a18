"""A look at what is new equals a join of all logs from the beginning, whatever comes in between."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.experiment.files import experiment, repeatable
from tests.experiment.logs import COLUMNS, T0, World, random_world
from thinktwice.experiment import looks
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.gather import Sources, evidence_of, join_logs
from thinktwice.experiment.join import Logs
from thinktwice.experiment.looks import LookJoined, join_look
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.query import engine, shared_engine
from thinktwice.records.events import CLICK_COLUMNS

FILE = experiment("exp1", arms=3, coverage=0.8, slices=["device"], guardrails=[{"metric": "latency_p50", "worse": "increase", "margin": 5}])  # fmt: skip
START = datetime.fromtimestamp(T0, timezone.utc)
WINDOW = Window(seconds=60, late_seconds=10)
SETTLE = 30.0
REQUESTS = 120


class Growing:
    """Logs that grow from look to look: an access log that is appended to and rotated, new parts, new tables of clicks.

    Args:
        late: share of lines, rows and clicks that are written only at one of the next looks.
    """

    def __init__(self, folder: Path, world: World, seed: int, late: float) -> None:
        self._folder, self._rng, self._late = folder, random.Random(seed), late
        self._number, self._rotated = 0, 0
        lines = [line for file in world.access for line in file]
        self._lines = [(self._written(_time_of(line)), line) for line in lines]
        self._rows = [(self._written(row["log_at"].timestamp()), row) for row in world.rows]
        clicks = []
        for row in world.rows[::3]:
            at = row["log_at"] + timedelta(seconds=self._rng.choice([-9, 1, 30, 59, 61, 500]))
            received = (
                None if self._rng.random() < 0.05 * late else at + timedelta(seconds=self._rng.choice([0, 5, 40]))
            )
            clicks.append({"request_id": row["log_request_id"], "item_id": row["log_item_id"], "at": at, "received_at": received})  # fmt: skip
        clicks += [dict(click, at=click["at"] + timedelta(seconds=1)) for click in clicks[::4]]
        clicks += [{"request_id": "nobody", "item_id": "i0", "at": START - timedelta(days=1), "received_at": None},
                   {"request_id": "r1", "item_id": None, "at": START, "received_at": START}]  # fmt: skip
        self._clicks = [(self._written((click["received_at"] or click["at"]).timestamp()), click) for click in clicks]
        folder.mkdir(parents=True)
        self._current = folder / "access.log"

    def _written(self, at: float) -> float:
        return at + (
            self._rng.uniform(0, 1500) if self._rng.random() < self._late else self._rng.uniform(0, SETTLE / 2)
        )

    def until(self, now: float) -> Sources:
        """Write what is written by then."""
        self._number += 1
        lines, self._lines = _taken(self._lines, now)
        with self._current.open("ab") as log:
            log.write("".join(line + "\n" for line in lines).encode("latin-1"))
        if self._rng.random() < 0.4 and self._current.stat().st_size:
            self._rotated += 1
            self._current.rename(self._folder / f"access-{self._rotated:03d}.log")
            self._current.touch()
        torn = self._folder / "torn.log"  # of a gateway that is killed while it writes
        torn.write_text('{"ts": "1", "request_id": "half' if self._rng.random() < 0.5 else "")
        rows, self._rows = _taken(self._rows, now)
        for number in range(2):
            if part := rows[number::2]:
                path = self._folder / f"served-{self._number:03d}-{number}.parquet"
                pq.write_table(pa.Table.from_pylist(part, COLUMNS), path)
        clicks, self._clicks = _taken(self._clicks, now)
        pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), self._folder / f"clicks-{self._number:03d}.parquet")
        access = [*sorted(self._folder.glob("access-*.log")), self._current, torn]
        parts = sorted(self._folder.glob("served-*.parquet"))
        logs = Logs([path for path in access if path.stat().st_size], parts, "log_user_id")
        return Sources(logs, sorted(self._folder.glob("clicks-*.parquet")))


def _time_of(line: str) -> float:
    try:
        return float(json.loads(line)["ts"])
    except (ValueError, TypeError, KeyError):
        return T0


def _taken(entries: list[tuple[float, Any]], now: float) -> tuple[list[Any], list[tuple[float, Any]]]:
    return [entry for at, entry in entries if at <= now], [one for one in entries if one[0] > now]


def seen(found: LookJoined, at: datetime) -> Evidence:
    return evidence_of(FILE, found.joined, found.folders, started=START, coverage_since=START, at=at)


def from_start(sources: Sources, folder: Path, at: datetime) -> Evidence:
    shutil.rmtree(folder, ignore_errors=True)
    joined = join_logs(FILE, sources, folder, at=at, window=WINDOW)
    return evidence_of(FILE, joined, folder, started=START, coverage_since=START, at=at)


def assert_equal(one: Evidence, other: Evidence) -> None:
    """All counts to the last one, and all numbers up to the order of additions."""
    assert one.exposures == other.exposures and one.outcomes == other.outcomes
    assert [(a.arm, a.units, a.quantiles) for a in one.arms] == [(a.arm, a.units, a.quantiles) for a in other.arms]
    parts = [(s.slice, s.value, s.arm) for s in one.slices]
    assert parts == [(s.slice, s.value, s.arm) for s in other.slices]
    for a, b in zip((*one.arms, *one.slices), (*other.arms, *other.slices), strict=True):
        if not a.sums.names or not b.sums.names:
            assert a.sums.num_units == b.sums.num_units == 0
            continue
        mine, theirs = a.sums.moments(), b.sums.moments()
        assert (mine.names, mine.num_units) == (theirs.names, theirs.num_units)
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mine.scatter, theirs.scatter, rtol=1e-9, atol=1e-9)


@settings(repeatable, max_examples=6, phases=(Phase.generate,))
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.lists(st.integers(20, 900), min_size=2, max_size=4),
    st.sampled_from([None, 0.0, 400.0]),
    st.booleans(),
)
def test_any_looks_equal_a_join_of_all_logs(
    tmp_path_factory: pytest.TempPathFactory, seed: int, late: float, steps: list[int], rows: float | None, shared: bool
) -> None:
    tmp_path = tmp_path_factory.mktemp("looks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looks, "GRACE", timedelta(seconds=200))
        logs = Growing(tmp_path / "logs", random_world(seed, layout_of([FILE]), REQUESTS), seed, late)
        now = T0
        for step in [*steps, 3000]:
            now += step
            sources, at = logs.until(now), datetime.fromtimestamp(now - SETTLE, timezone.utc)
            at = max(at, START)
            if rows is not None:
                sources = replace(sources, rows_since=START + timedelta(seconds=rows))
            with shared_engine(tmp_path) if shared else nullcontext():
                found = join_look(FILE, sources, tmp_path / "kept", at=at, window=WINDOW)
            assert_equal(seen(found, at), from_start(sources, tmp_path / "whole", at))


def test_lines_that_can_have_no_row_are_not_read_again(tmp_path: Path) -> None:
    """An experiment that starts later finds lines of earlier ones, whose rows are not among its logs."""
    world = orderly(7)
    logs = Growing(tmp_path / "logs", World(world.access, world.rows[:1], world.torn), 7, 0.0)
    for number, since in enumerate([None, START + timedelta(seconds=10_000)]):
        sources, at = logs.until(T0 + 3_000 + number), START + timedelta(seconds=2_900 + number)
        join_look(FILE, replace(sources, rows_since=since), tmp_path / "kept", at=at, window=WINDOW)
        (folder,) = [path for path in (tmp_path / "kept").iterdir() if path.name.isdigit()]
        assert (pq.read_metadata(folder / looks.LINES).num_rows == 0) is (
            since is not None
        )  # else they wait for an hour


def test_a_shared_engine_is_emptied_between_two_uses(tmp_path: Path) -> None:
    with shared_engine(tmp_path):
        with engine(tmp_path) as first:
            first.execute("CREATE TABLE a AS SELECT 1 AS x")
            first.execute("CREATE TEMP TABLE b AS SELECT 1 AS x")
            first.execute("CREATE VIEW c AS FROM a")
            first.register("d", pa.table({"x": [1]}))
            with engine(tmp_path) as inner:
                assert inner is not first
                inner.execute("CREATE TABLE a AS SELECT 2 AS x")
        with engine(tmp_path) as second:
            assert second is first and second.execute("SHOW ALL TABLES").fetchall() == []
        with engine(tmp_path, "1GB") as other:
            assert other is not first
    with engine(tmp_path) as after:
        assert after is not first


def orderly(seed: int, requests: int = REQUESTS) -> World:
    """A world in which every line has its rows and every id is used once."""
    world = random_world(seed, layout_of([FILE]), requests)
    lines, ids = [], set()
    for line in (line for file in world.access for line in file if line.startswith('{"ts": "')):
        content = json.loads(line)
        rows = [r for r in world.rows if r["log_request_id"] == content["request_id"]]
        if content["request_id"] not in ids and len({(r["log_arm"], r["log_place"]) for r in rows}) == len(rows) > 0:
            ids.add(content["request_id"])
            lines.append(line)
    rows = [{**r, "log_at": min(r["log_at"], r["log_at"])} for r in world.rows if r["log_request_id"] in ids]
    return World(access=[lines, []], rows=rows, torn=["", ""])


def test_a_look_reads_what_is_new(tmp_path: Path) -> None:
    logs = Growing(tmp_path / "logs", orderly(5), 5, 0.0)
    carried, read = [], []
    for number in range(1, 7):
        now = T0 + 220 * number
        sources, at = logs.until(now), datetime.fromtimestamp(now - SETTLE, timezone.utc)
        found = join_look(FILE, sources, tmp_path / "kept", at=at, window=WINDOW)
        assert found.from_start is (number == 1)
        assert_equal(seen(found, at), from_start(sources, tmp_path / "whole", at))
        (folder,) = [path for path in (tmp_path / "kept").iterdir() if path.name.isdigit()]
        carried.append(pq.read_metadata(folder / looks.ROWS).num_rows)
        read.append(carried[-1] + pq.read_metadata(folder / looks.CLOSED / looks.ROWS).num_rows)
    total = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "logs").glob("served-*.parquet"))
    assert max(carried) < total / 4 and max(read[1:]) < total / 2, "closed requests are not read again"
    assert sum(read) - sum(carried[:-1]) == total, "every row is read once, and again while its request is open"


@pytest.mark.parametrize("what", ["state", "folder", "key", "shrunk", "earlier", "killed"])
def test_what_does_not_fit_starts_over(tmp_path: Path, what: str) -> None:
    logs, window = Growing(tmp_path / "logs", orderly(6), 6, 0.0), WINDOW
    kept = tmp_path / "kept"
    sources, at = logs.until(T0 + 500), START + timedelta(seconds=470)
    join_look(FILE, sources, kept, at=at, window=window)
    sources, at = logs.until(T0 + 900), START + timedelta(seconds=870)
    if what == "state":
        (kept / looks.STATE).write_text("{}")
    elif what == "folder":
        shutil.rmtree(kept / "1" / looks.CLOSED)
    elif what == "key":
        window = Window(seconds=61)
    elif what == "shrunk":
        part = sources.logs.predictions[0]
        pq.write_table(pq.read_table(part).slice(1), part)
    elif what == "earlier":
        at = START + timedelta(seconds=400)
    else:  # after it wrote its files and before it said so
        (kept / "2" / looks.OPEN).mkdir(parents=True)
        (kept / "2" / "rest").write_text("half")
        shutil.copy(kept / looks.IDS / "000001.parquet", kept / looks.IDS / "000002.parquet")
    found = join_look(FILE, sources, kept, at=at, window=window)
    assert found.from_start is (what != "killed")
    joined = join_logs(FILE, sources, tmp_path / "whole", at=at, window=window)
    assert found.joined == joined
