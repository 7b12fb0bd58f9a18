"""A gateway's life: it starts only where it can, ends with its parent, keeps its log, and stops without losing a request."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.gateway.access_log import access_logs, count_lines
from serving.gateway.admin import Admin
from serving.gateway.process import Gateway
from tests.experiment.files import experiment
from tests.gateway.gateways import ACCESS_LOG, declare, gateway, log_lines, need_envoy
from tests.gateway.load import load
from tests.gateway.upstreams import Upstream, upstreams
from thinktwice.errors import ExperimentError, ServerError

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def arms() -> Iterator[list[Upstream]]:
    need_envoy()
    with upstreams("control", "t1") as found:
        yield found


def declared(arms: list[Upstream], **fields: Any) -> Any:
    return declare({"control": arms[0].port, "exp1/t1": arms[1].port}, [experiment("exp1", coverage=1.0)], **fields)


@pytest.fixture
def live(arms: list[Upstream], tmp_path: Path) -> Iterator[Gateway]:
    with gateway(tmp_path / "gateway", declared(arms, log_bytes=20_000)) as found:
        yield found


def test_rotation_under_load_loses_no_line(live: Gateway) -> None:
    with load(live.port, 200) as found:
        for _ in range(5):
            time.sleep(0.4)
            assert live.look_at_log() == []
    assert len(access_logs(live.folder)) >= 3
    counts = count_lines(access_logs(live.folder)) if log_lines(live, set(found.statuses)) else None
    assert counts is not None and not found.bad()
    assert (counts.requests, counts.answered, counts.torn, counts.broken) == (
        len(found.statuses),
        len(found.statuses),
        0,
        0,
    )


def test_a_full_disk_under_the_log_harms_no_request_and_is_said(live: Gateway) -> None:
    (live.folder / ACCESS_LOG).rename(live.folder / "access-0.log")
    (live.folder / ACCESS_LOG).symlink_to("/dev/full")
    live.admin.reopen_logs()
    with load(live.port, 100) as found:
        time.sleep(0.6)
    assert not found.bad()
    end = time.monotonic() + 10
    while not (said := live.look_at_log()):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "failed and their lines are lost" in said[0]
    assert live.look_at_log() == [], "said once"
    (live.folder / ACCESS_LOG).unlink()
    live.admin.reopen_logs()
    with load(live.port, 50) as found:
        time.sleep(0.2)
    assert log_lines(live, set(found.statuses))


def test_a_stop_answers_what_is_under_way(arms: list[Upstream], tmp_path: Path) -> None:
    with gateway(tmp_path, declared(arms)) as live:
        arms[0].mode = arms[1].mode = "ok"
        with load(live.port, 100) as found:
            time.sleep(0.5)
        folder, process = live.folder, live.process
    assert process.poll() is not None
    counts = count_lines(access_logs(folder))
    assert (counts.requests, counts.torn) == (len(found.statuses), 0), "the log is whole after an orderly end"


def test_only_one_gateway_a_folder_and_a_port(live: Gateway, arms: list[Upstream], tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="another gateway runs in"), gateway(live.folder, declared(arms)):
        pass
    with pytest.raises(ServerError, match=f"port {live.port} of"):
        with gateway(tmp_path / "other", declared(arms, port=live.port)):
            pass
    assert live.process.poll() is None


def test_a_restart_may_not_move_users_either(arms: list[Upstream], tmp_path: Path) -> None:
    ports = {"control": arms[0].port, "exp1/t1": arms[1].port}
    with gateway(tmp_path, declare(ports, [experiment("exp1", coverage=0.5)])) as live:
        first = live.admin.route_version()
    with pytest.raises(ExperimentError, match="leave the arm"):
        with gateway(tmp_path, declare(ports, [experiment("exp1", coverage=0.2)])):
            pass
    with gateway(tmp_path, declare(ports, [experiment("exp1", coverage=0.7)])) as live:
        assert live.admin.route_version() != first


def test_files_are_for_this_user_alone(live: Gateway) -> None:
    assert live.folder.stat().st_mode & 0o777 == 0o700
    for name in ("bootstrap.json", "rds.json", "cds.json", "probe.token", "admin.sock"):
        assert (live.folder / name).stat().st_mode & 0o077 == 0, name
    (envoy,) = [p for p in psutil.Process(live.process.pid).children(recursive=True) if p.name() == "envoy"]
    connections = getattr(envoy, "net_connections", None) or envoy.connections
    listening = [c.laddr for c in connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {(a.ip, a.port) for a in listening} == {("127.0.0.1", live.port)}


def test_a_folder_with_a_long_and_odd_name(arms: list[Upstream], tmp_path: Path) -> None:
    folder = tmp_path / ("a long name with blanks, ü and %20 " * 5)
    with gateway(folder, declared(arms)) as live:
        assert Admin(folder).ready() and len(str(folder)) > 150
        with load(live.port, 50) as found:
            time.sleep(0.2)
        assert not found.bad()


def test_envoy_that_dies_is_noticed(live: Gateway) -> None:
    (envoy,) = [p for p in psutil.Process(live.process.pid).children(recursive=True) if p.name() == "envoy"]
    envoy.kill()
    live.process.wait(30)
    with pytest.raises(ServerError, match=r"Envoy was ended by SIGKILL.*envoy\.log"):
        live.check()


@pytest.fixture
def place(arms: list[Upstream], tmp_path: Path) -> Path:
    """A folder with the files that a user writes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "exp.yaml").write_text(
        json.dumps(json.loads(experiment("exp1", coverage=0.5).model_dump_json(exclude_none=True)))
    )
    (tmp_path / "gateway.yaml").write_text(
        f"version: 1\nlisten: 127.0.0.1:{port}\nexperiments: [exp.yaml]\n"
        f"arms:\n  control: [127.0.0.1:{arms[0].port}]\n  exp1/t1: [127.0.0.1:{arms[1].port}]\n"
    )
    return tmp_path


def command(place: Path, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "thinktwice", "gateway", *words]
    return subprocess.Popen(line, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_takes_envoy_along_however_it_ends(place: Path, number: signal.Signals) -> None:
    process = command(place, "run", "gateway.yaml")
    try:
        assert process.stdout is not None and process.stdout.readline().startswith("ready http://127.0.0.1:")
        children = psutil.Process(process.pid).children(recursive=True)
        assert any(child.name() == "envoy" for child in children)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if number is signal.SIGKILL else 130)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert alive == []
    finally:
        process.kill()
        process.communicate()


def test_without_envoy_the_reason_is_said_and_assignment_works(place: Path) -> None:
    environment = {**os.environ, "THINKTWICE_ENVOY": str(place / "nothing")}
    line = [sys.executable, "-m", "thinktwice"]
    for words, code in ((["gateway", "run"], 1), (["gateway", "check"], 0)):
        done = subprocess.run(
            [*line, *words, "gateway.yaml"], cwd=place, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code and "not a file: set it to the path of an Envoy" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    done = subprocess.run(
        [*line, "experiment", "assign", "exp.yaml", "user-1"],
        cwd=place, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode == 0 and "\tenrolled" in done.stdout) or "\tnot enrolled" in done.stdout
    shutil.rmtree(place / ".thinktwice", ignore_errors=True)
