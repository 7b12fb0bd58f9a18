"""Model server of the demo: start, query, stop."""

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
from thinktwice.console.processes import python_command, running
from thinktwice.errors import ServerError

HOST = "127.0.0.1"
PORT = 8080  # the port in the README, used if it is free
START_LIMIT = 240.0  # seconds
READY = "ready "  # prefix of the line that the server prints once a worker has scored
POLL = 0.25  # seconds between checks of a starting server


def free_port(preferred: int = PORT) -> int:
    """`preferred` if it is free, else a port chosen by the system."""
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
    """Predict URL of the model `ctr`."""
    return f"http://{HOST}:{port}/v1/models/ctr:predict"


@contextmanager
def serving(state_dir: Path, port: int, log: Path) -> Iterator[Popen[bytes]]:
    """Serve the champion of `state_dir` while the block runs; the output of the server goes to `log`.

    Raises:
        ServerError: the server ended before it was ready (with its own message), or took too long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = python_command("thinktwice", "serve", "--state", str(state_dir), "--port", str(port))
    with log.open("wb") as output, running(command, environment=os.environ, output=output) as process:
        _wait_ready(process, log)
        yield process


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
    messages = [line.removeprefix("thinktwice: ") for line in lines if line.startswith("thinktwice: ")]
    return messages[-1] if messages else f"the server ended before it was ready: read {log}"


def ask(port: int, instance: dict[str, Any]) -> dict[str, Any]:
    """Send one KServe v1 request and return its prediction.

    Raises:
        ServerError: there was no response in time, or it was not from a predictor.
        RequestError: the server refused the request.
    """
    prediction: dict[str, Any] = ask_server(f"http://{HOST}:{port}", {"instances": [instance]})["predictions"][0]
    return prediction
