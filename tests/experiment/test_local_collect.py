"""Looks at the local roll-out: which parts and clicks are read, and that nothing is read twice."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.feedback.event_log import EventLog, segment_file
from serving.feedback.records import Record
from serving.rollout.collect import BEFORE_START, collect, replicas_of, write_clicks
from serving.rollout.servers import GATEWAY, SERVED
from tests.experiment.files import experiment
from tests.experiment.logs import T0, random_world
from thinktwice.errors import DataError
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig
from thinktwice.experiment.join import Logs, join_exposures
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.record import ExperimentState
from thinktwice.experiment.routes import cluster_of, render

FILE = experiment("exp1", arms=3, coverage=0.8)
START = datetime.fromtimestamp(T0, timezone.utc)


def look(folder: Path, started: datetime, at: datetime) -> Evidence:
    state = ExperimentState(file=FILE, started=started, coverage_since=started, ended=None, pending=None, decisions=0)
    exposed = folder / "exposed.parquet"
    return collect(state, folder, [], folder / "look", at=at, window=Window(seconds=5), exposed=exposed)


@pytest.mark.parametrize(
    ("seconds_before", "is_read"),
    [(-10.0, True), (0.0, True), (BEFORE_START - 1, True), (BEFORE_START + 1, False), (3600.0, False)],
)
def test_parts_that_ended_shortly_before_the_start_is_recorded_are_read(
    tmp_path: Path, seconds_before: float, is_read: bool
) -> None:
    """The routes are live before the start is recorded: rows of that time belong to the experiment."""
    world = random_world(4, layout_of([FILE]), 80)
    access, parts = world.write(tmp_path)
    (tmp_path / GATEWAY).mkdir()
    for number, path in enumerate(access):
        path.rename(tmp_path / GATEWAY / ("access.log" if number else "access-1.log"))
    started = START + timedelta(seconds=500)
    for number, path in enumerate(parts):
        target = tmp_path / SERVED / "control" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        age = seconds_before if number == 0 else -60.0
        os.utime(target, (started.timestamp() - age,) * 2)
    found = look(tmp_path, started, START + timedelta(hours=1))
    assert found.exposures is not None
    read = [tmp_path / SERVED / "control" / path.name for path in (parts if is_read else parts[1:])]
    logs = Logs(sorted((tmp_path / GATEWAY).iterdir()), read, "log_user_id")
    at = START + timedelta(hours=1)
    assert found.exposures == join_exposures(logs, layout_of([FILE]), tmp_path / "expected", watermark=at)
    assert (tmp_path / "exposed.parquet").is_file()


def click(number: int) -> Record:
    return Record("click", number * 10**6, f"r{number}", "i1", None, number * 10**6)


def test_clicks_of_an_event_log_are_written_once(tmp_path: Path) -> None:
    log, folder = EventLog(tmp_path / "events"), tmp_path / "clicks"
    assert write_clicks(tmp_path / "events", folder) == []
    for seen, first in enumerate((0, 3, 7), start=1):
        log.append([click(number) for number in range(first, first + 3)] + [Record("tick", (first + 3) * 10**6)])
        tables = write_clicks(tmp_path / "events", folder)
        assert tables == write_clicks(tmp_path / "events", folder), "no event is new"
        assert len(tables) == seen
    ids = [r for path in tables for r in pq.read_table(path).column("request_id").to_pylist()]
    assert ids == [f"r{n}" for n in (0, 1, 2, 3, 4, 5, 7, 8, 9)]
    log.close()
    segment_file(tmp_path / "events", 0).write_bytes(b"")
    with pytest.raises(DataError, match="shorter than it was at the last look"):
        write_clicks(tmp_path / "events", folder)


def test_servers_are_counted_that_the_gateway_finds_healthy() -> None:
    endpoints = {cluster_of(FILE.name, arm.name): [Endpoint(host="127.0.0.1", port=1)] for arm in FILE.arms}
    text = dict(render([FILE.model_copy(update={"coverage": 0.5})], endpoints, GatewayConfig(), 1).files())["cds.json"]
    checked = [c["name"] for c in json.loads(text)["resources"] if "health_checks" in c]
    stats = {f"cluster.{name}.membership_healthy": number for number, name in enumerate(sorted(checked))}
    assert replicas_of(FILE, stats) == {"control": 0, "t1": 1, "t2": 2}
    for name in stats:
        assert replicas_of(FILE, {k: v for k, v in stats.items() if k != name}) is None
