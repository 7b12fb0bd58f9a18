"""The demo around its server: every failure is one sentence, and nothing it started outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from demo import cli, server
from thinktwice.console.processes import group_alive
from thinktwice.errors import PipelineError, ServerError
from thinktwice.files import write_json


@contextmanager
def answering(status: int, body: bytes, wait: float = 0.0) -> Iterator[int]:
    """A server on loopback that gives every question the same answer; yields its port."""
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            release.wait(wait)
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the one who asked has gone

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running.server_port
        finally:
            release.set()
            running.shutdown()
            thread.join(10)


def test_an_answer_is_the_prediction():
    with answering(200, json.dumps({"predictions": [{"items": []}]}).encode()) as port:
        assert server.ask(port, {}) == {"items": []}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (503, b"no worker", r"failed with status 503 \(no worker\)"),
        (200, b"<html>", "no predictor answers at"),
        *((200, body, "is not a thinktwice predictor") for body in (b"{}", b"[]", b"null", b'{"predictions": 1}')),
        *((200, body, "is not a thinktwice predictor") for body in (b'{"predictions": []}', b'{"predictions": [{}]}')),
    ],
)
def test_a_bad_answer_is_one_sentence(status: int, body: bytes, words: str):
    with answering(status, body) as port, pytest.raises(ServerError, match=words):
        server.ask(port, {})


def test_nobody_and_no_answer_in_time_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ServerError, match=r"no predictor answers at .*refused"):
        server.ask(1, {})
    monkeypatch.setattr("serving.cli.ANSWER_LIMIT", 0.2)
    with (
        answering(200, b"{}", wait=10) as port,
        pytest.raises(ServerError, match=r"no predictor answers at .*timed out"),
    ):
        server.ask(port, {})


def test_what_does_not_speak_http_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"220 mail ready\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ServerError, match=r"no predictor answers at .*220 mail ready"):
            server.ask(listener.getsockname()[1], {})
        thread.join(10)


def test_the_server_ends_with_the_demo_and_so_do_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = (
        "import subprocess, time; subprocess.Popen(['sleep', '60']); print('ready here', flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(server, "python_command", lambda *words: [sys.executable, "-c", program])
    with pytest.raises(KeyboardInterrupt), server.serving(tmp_path, 1, tmp_path / "serve.log") as process:
        assert process.poll() is None
        raise KeyboardInterrupt
    assert not group_alive(process.pid)


def test_without_any_champion_the_demo_says_why_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def pipeline(dataset: cli.Dataset, work: Path, state: Path) -> int:
        write_json(
            work / cli.LAST_RUN, {"blessed": False, "training_set": "x", "model_report": str(work / "model.html")}
        )
        return 0

    monkeypatch.setattr(cli, "_run_pipeline", pipeline)
    with pytest.raises(PipelineError) as caught:
        cli.demo("sim")
    message = str(caught.value)
    assert "not blessed and there is no earlier one" in message
    assert ".thinktwice/demo/sim/model.html" in message and "\n" not in message


def processes_in(folder: Path) -> list[int]:
    """Ids of the processes that run in `folder`; a step of the pipeline runs where the demo was started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve(strict=True).is_relative_to(folder) and (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.pipeline
def test_ctrl_c_in_the_middle_of_the_pipeline_leaves_no_process(tmp_path: Path):
    root = Path(cli.__file__).resolve().parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "thinktwice", "demo", "--dataset", "sim"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".thinktwice/demo/sim/pipeline/*/ingest")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # The demo, the pipeline, KFP's runner and the step.
        assert len(processes_in(tmp_path)) >= 3
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert processes_in(tmp_path) == []
    assert not list(tmp_path.glob(".thinktwice/demo/sim/pipeline/*/ingest"))
