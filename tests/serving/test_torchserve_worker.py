"""Our worker of TorchServe and the scorer it starts, as real processes behind a front end that speaks its protocol."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.adapters.torchserve_worker import WorkerState, interpreter_file
from tests.serving.front_end import FrontEnd, Said, predict
from tests.serving.small import PLAIN_SCHEMA, make_bundle

pytestmark = pytest.mark.server

BODY = b'{"instances": [{"rows": [{}]}]}'
WORK = json.dumps({"instances": [{"rows": [{}] * 1000}] * 5}).encode()
LONG = json.dumps({"instances": [{"rows": [{"site": f"s{i}"} for i in range(1000)]}] * 5}).encode()


@dataclass
class Worker:
    """A worker process and the front end it serves."""

    process: subprocess.Popen[bytes]
    end: FrontEnd
    log: Path

    @property
    def scorer(self) -> psutil.Process:
        for _ in range(200):
            if found := psutil.Process(self.process.pid).children():
                return found[0]
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def until_scored(self) -> list[Said]:
        """Ask until a request is scored; the refusals before."""
        refused = []
        for _ in range(1200):
            said = self.end.ask(b"probe", BODY)
            if said.status == 200:
                return refused
            refused.append(said)
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def until_idle(self) -> psutil.Process:
        """The scorer, once it has noted that its answer is sent; the answer may be here before the note."""
        state = desk_of(self)
        for _ in range(2000):
            if state.phase == WorkerState.BETWEEN:
                return self.scorer
            time.sleep(0.005)
        raise AssertionError(state.phase)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked archive, with code in it that must never run."""
    folder = tmp_path_factory.mktemp("archive")
    make_bundle(folder, PLAIN_SCHEMA)
    for name in ("sitecustomize.py", "usercustomize.py", "orjson.py", "handler.py", "json.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    return folder


def connect(place: Path) -> FrontEnd:
    for _ in range(600):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(place))
            return FrontEnd(connection)
        except OSError:
            connection.close()
            time.sleep(0.05)
    raise AssertionError("the worker does not listen")


@contextmanager
def running(archive: Path, tmp_path: Path) -> Iterator[Worker]:
    """A worker whose front end has asked for the model in ``archive``."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    interpreter = interpreter_file(folder / "worker.sh")
    (tmp_path / "metrics").mkdir()
    environment = {
        **os.environ,
        # As the front end does it.
        "PYTHONPATH": f"{archive}:{archive.parent}",
        "THINKTWICE_SERVING": str(tmp_path / "serving.yaml"),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
    }
    log = {"folder": str(tmp_path / "served"), "sample": 1.0, "part_seconds": 600}
    (tmp_path / "serving.yaml").write_text(json.dumps({"metrics_port": 0, "prediction_log": log}))
    command = [interpreter, "/nowhere/ts/model_service_worker.py", "--sock-type", "unix", "--sock-name", folder / "s"]
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--metrics-config", "x"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    found = Worker(process, connect(folder / "s"), tmp_path / "log")
    try:
        found.end.load("ctr", str(archive))
        yield found
    finally:
        found.end.close()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def worker(archive: Path, tmp_path: Path) -> Iterator[Worker]:
    with running(archive, tmp_path) as found:
        yield found


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_requests_are_refused_at_once_until_the_model_is_loaded(worker: Worker, archive: Path) -> None:
    refused = worker.until_scored()
    assert refused, "the first request found a model that cannot have been loaded yet"
    assert {(said.status, said.headers["retry-after"]) for said in refused} == {(503, "5")}
    assert json.loads(refused[0].body) == {"error": "model ctr is being loaded: try again later", "field": ""}
    text = worker.log.read_text()
    assert f"[PID]{worker.process.pid}\nTorch worker started.\n" in text
    assert not (archive / "ran").exists(), "code of the archive ran"


def test_a_scorer_that_is_killed_is_missed_by_nobody_for_long(worker: Worker, tmp_path: Path) -> None:
    worker.until_scored()
    scorer = worker.until_idle()
    os.kill(scorer.pid, signal.SIGKILL)
    refused = worker.until_scored()
    assert {said.status for said in refused} == {503}
    assert {said.headers["retry-after"] for said in refused} == {"5"}
    assert worker.scorer.pid != scorer.pid
    (line,) = [line for line in worker.lines() if "another is started" in line["message"]]
    assert line["message"] == "the scorer was ended by SIGKILL: was memory short?: another is started"
    assert not list((tmp_path / "metrics").glob(f"*live*_{scorer.pid}.db")), "the dead one counts no more"


def desk_of(worker: Worker) -> WorkerState:
    """What the scorer has noted, by way of the worker's open file."""
    for file in Path(f"/proc/{worker.process.pid}/fd").iterdir():
        if "(deleted)" in str(file.readlink()) and file.stat().st_size == WorkerState.SIZE:
            with file.open("rb") as notebook:
                return WorkerState(mmap.mmap(notebook.fileno(), WorkerState.SIZE, access=mmap.ACCESS_READ))
    raise AssertionError("no notebook")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_request_a_scorer_dies_of_gets_500(worker: Worker) -> None:
    worker.until_scored()
    scorer, desk = worker.scorer, desk_of(worker)
    for number in range(100):
        name = b"poison-%d" % number
        worker.end.connection.sendall(predict(name, {b"explain": b"False"}, [(b"body", b"", WORK)]))
        while desk.request != name:
            pass
        os.kill(scorer.pid, signal.SIGSTOP)
        if desk.phase == WorkerState.WORKING:
            break
        os.kill(scorer.pid, signal.SIGCONT)
        assert worker.end.answer().status == 200
    os.kill(scorer.pid, signal.SIGKILL)
    said = worker.end.answer()
    assert (said.request, said.status, "retry-after" in said.headers) == (name, 500, False)
    assert json.loads(said.body)["error"] == "the scoring process died while it processed this request"
    assert worker.until_scored()


def test_the_next_request_follows_whatever_a_scorer_was_killed_in(worker: Worker) -> None:
    """At any moment: every request is answered once, by its own name, or the connection is given up as a whole."""
    worker.until_scored()
    for number in (0, 2, 5):
        scorer = worker.scorer
        name = b"r%d" % number
        worker.end.connection.sendall(predict(name, {b"explain": b"False"}, [(b"body", b"", LONG)]))
        time.sleep(0.004 * number)
        os.kill(scorer.pid, signal.SIGKILL)
        try:
            said = worker.end.answer()
        except EOFError:
            assert worker.process.wait(30) == 0
            return
        assert said.request == name and said.status in (200, 500, 503)
        worker.until_scored()


def test_what_is_no_prediction_is_refused(worker: Worker) -> None:
    worker.until_scored()
    for headers in ({b"explain": b"True"}, {}, {b"explain": b"False", b"url_path": b""}):
        said = worker.end.send(predict(b"r", headers, [(b"body", b"application/json", BODY)]))
        assert (said.status, json.loads(said.body)["field"]) == (404, "path")
    for inputs in ([(b"a", b"", b"")] * 3, [(b"a", b"", b"b")], [], [(b"data", b"application/json", BODY)]):
        said = worker.end.send(predict(b"r", {b"explain": b"False"}, inputs))
        assert (said.status, json.loads(said.body)["field"]) == (400, "body")
    assert worker.end.ask(b"r", BODY).status == 200


def test_at_the_end_of_the_connection_what_was_served_is_written(worker: Worker, tmp_path: Path) -> None:
    worker.until_scored()
    scorer = worker.scorer
    assert worker.end.ask(b"last", BODY, {b"X-Request-Id": b"the-last-one"}).status == 200
    worker.end.close()
    assert worker.process.wait(30) == 0
    assert gone(scorer)
    assert list((tmp_path / "served").glob("*.parquet"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_takes_its_scorer_along(worker: Worker, number: int) -> None:
    worker.until_scored()
    scorer = worker.scorer
    worker.process.send_signal(number)
    _, alive = psutil.wait_procs([scorer], timeout=30)
    assert not alive


def test_a_model_that_cannot_be_loaded_is_told_and_tried_again(tmp_path: Path) -> None:
    """As long as it is not there, requests are refused at once."""
    with running(tmp_path, tmp_path) as worker:
        while sum("another is started" in line["message"] for line in worker.lines()) < 2:
            assert worker.end.ask(b"r", BODY).status == 503
            time.sleep(0.05)
        assert worker.lines()[0]["message"].startswith("cannot load: ")
        assert worker.lines()[1]["message"] == (
            "the scorer ended by itself (exit code 1) while it loaded the model: another is started"
        )


def test_garbage_ends_the_connection_and_not_in_a_loop(worker: Worker) -> None:
    worker.until_scored()
    worker.end.connection.sendall(b"nonsense")
    assert worker.end.connection.recv(1) == b""
    assert worker.process.wait(30) == 0


def test_nobody_connects(tmp_path: Path) -> None:
    """A worker whose front end has died does not stay."""
    code = "import serving.adapters.torchserve_worker as w, sys; w.ACCEPT_LIMIT = 0.2; sys.exit(w.main(sys.argv[1:]))"
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    arguments = ["script", "--sock-type", "unix", "--sock-name", str(folder / "s")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "did not connect" in done.stdout and "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []
    folder.rmdir()
