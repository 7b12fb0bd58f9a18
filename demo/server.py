"""Start the model server, ask it, and stop it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

from serving.cli import ask as ask_server
from thinktwice.console.processes import python_command, start, stop
from thinktwice.errors import ServerError

HOST = "127.0.0.1"
PORT = 8080  # the one the README names, when it is free
START_LIMIT = 240.0  # seconds
READY = "ready "  # how the server's line starts once a worker has scored
POLL = 0.25  # seconds between two looks at a starting server


def free_port(preferred: int = PORT) -> int:
    """`preferred`, or one the system gives when somebody listens there."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerError(f"no port of {HOST} is free: stop a program that listens there")


def predict_url(port: int) -> str:
    """Where the model `ctr` answers."""
    return f"http://{HOST}:{port}/v1/models/ctr:predict"


@contextmanager
def serving(state_dir: Path, port: int, log: Path) -> Iterator[Popen[bytes]]:
    """Serve the champion of `state_dir` while the block runs; what the server prints goes to `log`.

    Raises:
        ServerError: the server ended before it answered (its own sentence is the message), or took too long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = start(
            python_command("thinktwice", "serve", "--state", str(state_dir), "--port", str(port)),
            environment=os.environ,
            output=output,
        )
        try:
            _wait_ready(process, log)
            yield process
        finally:
            stop(process)


def _wait_ready(process: Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(_last_words(log))
        if any(line.startswith(READY) for line in log.read_text(encoding="utf-8", errors="replace").splitlines()):
            return
        time.sleep(POLL)
    raise ServerError(f"the server did not answer within {START_LIMIT:.0f} s: read {log}")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line.removeprefix("thinktwice: ") for line in lines if line.startswith("thinktwice: ")]
    return own[-1] if own else f"the server ended before it was ready: read {log}"


def ask(port: int, instance: dict[str, Any]) -> dict[str, Any]:
    """Send one request, KServe v1, and return its prediction.

    Raises:
        ServerError: nothing answered in time, or something other than a predictor did.
        RequestError: the server refused the request.
    """
    prediction: dict[str, Any] = ask_server(f"http://{HOST}:{port}", {"instances": [instance]})["predictions"][0]
    return prediction
