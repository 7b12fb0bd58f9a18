"""A server is live while it predicts, and answers what is under way before it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from serving.local import kserve_process, torchserve_process
from tests.contract.test_contract import V1, Reply, ask
from tests.server.conftest import free_port
from thinktwice.errors import ServerError
from thinktwice.files import write_json
from thinktwice.release.champion import Champion

pytestmark = pytest.mark.server

#: The largest body there may be, five times: far longer at work than a signal or a probe takes to arrive.
LONG = {"instances": [{"rows": [{"user_id": f"u{i}"} for i in range(1000)]} for _ in range(5)]}
COUNT = 24
PATIENT = {"X-Deadline-Ms": "600000"}


@pytest.fixture(params=["torchserve", "kserve"])
def alone(
    request: pytest.FixtureRequest, champion: Champion, tmp_path: Path
) -> Iterator[tuple[Any, Callable[[], object]]]:
    """A server for one test, and what ends it. TorchServe drops its queue at a SIGTERM, so `stop` waits for that first."""
    store, log = champion.feature_store_dir, tmp_path / "log"
    if request.param == "torchserve":
        with torchserve_process.running(champion.archive, feature_store=store, port=free_port(), log=log) as server:
            yield server, lambda: torchserve_process.stop(server)
        return
    with kserve_process.running(champion.archive, feature_store=store, port=free_port(), log=log) as second:
        yield second, second.process.terminate


def start(url: str, replies: list[Reply], count: int) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=lambda: replies.append(ask(url, V1, LONG, PATIENT, limit=120))) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


def test_live_while_predicting_and_drained_at_the_end(alone: tuple[Any, Callable[[], object]]) -> None:
    server, end = alone
    replies: list[Reply] = []
    threads = start(server.url, replies, COUNT)
    time.sleep(0.1)  # they are under way, the first at work and the others waiting
    probes = [ask(server.url, "/v2/health/live", None, method="GET") for _ in range(5)]
    busy = any(thread.is_alive() for thread in threads)
    assert busy, "the long requests were over too soon to show anything"
    assert {probe.status for probe in probes} == {200}
    end()
    for thread in threads:
        thread.join(120)
    assert [reply.status for reply in replies] == [200] * COUNT
    assert all(len(p["rows"]) == 1000 for reply in replies for p in reply.json["predictions"])
    with pytest.raises(ServerError, match=r"(ended by itself|was ended by SIGTERM)"):
        for _ in range(600):
            server.check()
            time.sleep(0.05)


def test_what_was_served_is_written_before_the_kserve_predictor_ends(champion: Champion, tmp_path: Path) -> None:
    settings = {"prediction_log": {"folder": str(tmp_path / "served"), "sample": 1.0, "part_seconds": 600.0}}
    write_json(tmp_path / "serving.yaml", settings)
    (tmp_path / "tmp").mkdir()
    more = {"THINKTWICE_SERVING": str(tmp_path / "serving.yaml"), "TMPDIR": str(tmp_path / "tmp")}
    with kserve_process.running(
        champion.archive,
        feature_store=champion.feature_store_dir,
        port=free_port(),
        log=tmp_path / "log",
        environment=more,
    ) as server:
        assert list((tmp_path / "tmp").iterdir()), "the bundle is unpacked there"
        body = {"instances": [{"rows": [{}, {}]}]}
        assert ask(server.url, V1, body, {"X-Request-Id": "the-last-one"}).status == 200
    assert server.process.returncode == 0
    rows = pl.read_parquet(tmp_path / "served" / "*.parquet").filter(pl.col("log_request_id") == "the-last-one")
    assert rows.height == 2
    assert list((tmp_path / "tmp").iterdir()) == []


SERVE = """
import sys, time
from pathlib import Path
from serving.local import kserve_process
archive, store, port, log = sys.argv[1:]
with kserve_process.running(Path(archive), feature_store=Path(store), port=int(port), log=Path(log)) as server:
    print(server.process.pid, flush=True)
    time.sleep(600)
"""


def test_a_killed_parent_takes_the_kserve_predictor_along(champion: Champion, tmp_path: Path) -> None:
    arguments = [str(champion.archive), str(champion.feature_store_dir), str(free_port()), str(tmp_path / "log")]
    with subprocess.Popen([sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        assert server.is_running()
        parent.kill()
    _, alive = psutil.wait_procs([server], timeout=60)
    for process in alive:
        process.kill()
    assert alive == []


def test_a_bundle_that_cannot_be_served_is_named(champion: Champion, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(champion.bundle_dir, tmp_path / "bundle")
    with (tmp_path / "bundle" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    with (
        pytest.raises(ServerError, match=r"cannot be served: bundle .*weights.safetensors has SHA-256 .* is damaged"),
        kserve_process.running(
            tmp_path / "bundle",
            feature_store=champion.feature_store_dir,
            port=free_port(),
            log=tmp_path / "log",
        ),
    ):
        raise AssertionError("it came up")


def test_settings_that_are_wrong_are_named(champion: Champion, tmp_path: Path) -> None:
    write_json(tmp_path / "serving.yaml", {"quue": 1})
    with (
        pytest.raises(ServerError, match=r"serving settings .* are wrong at quue"),
        kserve_process.running(
            champion.bundle_dir,
            feature_store=None,
            port=free_port(),
            log=tmp_path / "log",
            environment={"THINKTWICE_SERVING": str(tmp_path / "serving.yaml")},
        ),
    ):
        raise AssertionError("it came up")
