"""Servers as child processes on loopback: ports, probes and signals."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil

from serving.exits import ended
from thinktwice.errors import ServerError
from thinktwice.release.champion import MODEL_NAME

HOST = "127.0.0.1"
PROBE: dict[str, object] = {"instances": [{"rows": [{}]}]}  # an empty row is a valid request to any model
START_LIMIT = 180.0  # seconds; a cold disk takes most of a minute to import everything
STOP_LIMIT = 20.0  # seconds to finish requests in progress

Progress = Callable[[str], None]


@dataclass
class LocalServer:
    """A server that runs as a child process."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]
    name: ClassVar[str]
    seconds_to_ready: float = field(default=0.0, kw_only=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def predict_url(self) -> str:
        return f"{self.url}/v1/models/{MODEL_NAME}:predict"

    def output(self) -> str:
        """Output of the server so far.

        Raises:
            ServerError: the output says that the model cannot be loaded.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace")
        if match := re.search(r'"cannot load: (?:[^"\\]|\\.)*"', text):  # a JSON string within a line
            raise ServerError(f"the model cannot be served: {json.loads(match[0]).removeprefix('cannot load: ')}")
        return text

    def check(self) -> None:
        """Raise a ServerError if the server has ended by itself."""
        if (code := self.process.poll()) is not None:
            self.output()
            raise ServerError(f"{self.name} {ended(code)}: see {self.log}")


def start_child(
    command: list[str], log: Path, environment: dict[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a launcher in its own session: Ctrl-C in the terminal reaches only this process, which then stops the server.

    The launcher's standard input is a pipe that closes when this process ends, even by SIGKILL.

    Args:
        log: file for the output; replaced.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def check_port(port: int) -> None:
    """Raise a ServerError if the port is in use."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerError(
                f"port {port} of {HOST} cannot be used ({error.strerror}): stop the program that uses it, "
                "or set another one with --port"
            ) from error


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """Distinct free ports on loopback."""
    sockets = [socket.socket(socket.AF_INET, kind) for _ in range(count)]
    try:
        for bound in sockets:
            bound.bind((HOST, 0))
        return [bound.getsockname()[1] for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def scored(url: str, limit: float = 30.0) -> bool:
    """Whether the server at a predict URL answers a request within ``limit`` seconds."""
    request = urllib.request.Request(  # noqa: S310 (a literal http address)
        url, json.dumps(PROBE).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=limit) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send_signal(process: psutil.Process, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
