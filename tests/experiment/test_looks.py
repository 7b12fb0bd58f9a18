"""A look at what is new equals a join of all logs from the beginning, whatever comes in between."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.experiment.files import experiment, repeatable
from tests.experiment.growing import SETTLE, START, Growing
from tests.experiment.logs import T0, World, random_world
from thinktwice.experiment import looks
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.gather import Sources, evidence_of, join_logs
from thinktwice.experiment.looks import LookJoined, join_look
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.query import engine, shared_engine

FILE = experiment("exp1", arms=3, coverage=0.8, slices=["device"], guardrails=[{"metric": "latency_p50", "worse": "increase", "margin": 5}])  # fmt: skip
WINDOW = Window(seconds=60, late_seconds=10)
REQUESTS = 120


def seen(found: LookJoined, at: datetime) -> Evidence:
    return evidence_of(FILE, found.joined, found.folders, started=START, coverage_since=START, at=at)


def from_start(sources: Sources, folder: Path, at: datetime) -> Evidence:
    shutil.rmtree(folder, ignore_errors=True)
    joined = join_logs(FILE, sources, folder, at=at, window=WINDOW)
    return evidence_of(FILE, joined, folder, started=START, coverage_since=START, at=at)


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
            assert seen(found, at) == from_start(sources, tmp_path / "whole", at)


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
        assert seen(found, at) == from_start(sources, tmp_path / "whole", at)
        (folder,) = [path for path in (tmp_path / "kept").iterdir() if path.name.isdigit()]
        carried.append(pq.read_metadata(folder / looks.ROWS).num_rows)
        read.append(carried[-1] + pq.read_metadata(folder / looks.CLOSED / looks.ROWS).num_rows)
    total = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "logs").glob("served-*.parquet"))
    assert max(carried) < total / 4 and max(read[1:]) < total / 2, "closed requests are not read again"
    assert sum(read) - sum(carried[:-1]) == total, "every row is read once, and again while its request is open"


@pytest.mark.parametrize("what", ["state", "folder", "cut", "flipped", "lost", "key", "shrunk", "earlier", "killed"])
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
    elif what == "cut":  # a disk that was full
        path = kept / "1" / looks.CLOSED / "all" / "units.parquet"
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "flipped":
        path = kept / looks.IDS / "000001.parquet"
        content = path.read_bytes()
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif what == "lost":
        (kept / looks.IDS / "000001.parquet").unlink()
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
    assert found.joined.model_copy(update={"damaged": 0}) == joined
    assert (found.joined.damaged > 0) is (what in ("state", "folder", "cut", "lost", "flipped"))
    assert (kept / looks.DAMAGED).exists() is (what in ("state", "cut", "flipped")), "what is damaged is not lost"


def test_every_kept_byte_is_checked(tmp_path: Path) -> None:
    """A byte that differs anywhere in any kept file is found, and the state that names the files is one of them."""
    logs, kept, rng = Growing(tmp_path / "logs", orderly(6, 30), 6, 0.0), tmp_path / "kept", random.Random(0)
    sources, at = logs.until(T0 + 500), START + timedelta(seconds=470)
    with shared_engine(tmp_path):
        join_look(FILE, sources, kept, at=at, window=WINDOW)
    content = json.loads((kept / looks.STATE).read_text())["state"]
    names = [*content["files"], looks.STATE]
    assert len(names) > 6
    for name in names:
        whole = (kept / name).read_bytes()
        for _ in range(20):
            place, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            (kept / name).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            state, broken = looks._read(kept, content["key"], at)
            assert state is None and broken == [name]
        (kept / name).write_bytes(whole)
    assert looks._read(kept, content["key"], at) != (None, [])


class Killed(BaseException):
    """The process ends here: nothing that follows runs, but for what clears temporary files."""


@pytest.mark.parametrize("after", [False, True], ids=["before a rename", "after it"])
def test_a_look_that_is_killed_at_any_rename_is_repaired_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Every eighth is tried, and every eighth plus four."""
    logs = Growing(tmp_path / "logs", random_world(3, layout_of([FILE]), 30), 3, 0.0)
    kept, replace_file = tmp_path / "kept", os.replace
    sources, at = logs.until(T0 + 300), START + timedelta(seconds=270)
    with shared_engine(tmp_path):
        join_look(FILE, sources, kept, at=at, window=WINDOW)
        sources, at = logs.until(T0 + 3_000), START + timedelta(seconds=2_970)
        expected, number = from_start(sources, tmp_path / "whole", at), -4 if after else 0
        shutil.copytree(kept, tmp_path / "first")
        while True:
            number, renames = number + 8, itertools.count(1)

            def renamed(*args: Any, last: int = number, counted: Iterator[int] = renames) -> None:
                if next(counted) == last:
                    if after:
                        replace_file(*args)
                    raise Killed
                replace_file(*args)

            shutil.rmtree(kept)
            shutil.copytree(tmp_path / "first", kept)
            monkeypatch.setattr(os, "replace", renamed)
            try:
                join_look(FILE, sources, kept, at=at, window=WINDOW)
            except Killed:
                pass
            else:
                break
            finally:
                monkeypatch.setattr(os, "replace", replace_file)
            found = join_look(FILE, sources, kept, at=at, window=WINDOW)
            assert seen(found, at) == expected and not found.from_start
    assert number > 15, "there are that many renames in a look"
