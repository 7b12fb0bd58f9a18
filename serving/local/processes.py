"""Children of this process that serve on loopback: ports, probes and signals, whichever server it is."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil

from serving.exits import ended
from thinktwice.errors import ServerError
from thinktwice.release.champion import MODEL_NAME

HOST = "127.0.0.1"
PROBE: dict[str, object] = {"instances": [{"rows": [{}]}]}  # a row with nothing in it is a valid question to any model
START_LIMIT = 180.0  # seconds; a cold disk takes most of a minute to import everything
STOP_LIMIT = 20.0  # seconds to finish what is under way

Progress = Callable[[str], None]


@dataclass
class LocalServer:
    """A server that runs as a child, whichever it is."""

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
        """What it has printed so far.

        Raises:
            ServerError: it said that it cannot load its model.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace")
        if match := re.search(r'"cannot load: (?:[^"\\]|\\.)*"', text):  # a JSON string within a line
            raise ServerError(f"the model cannot be served: {json.loads(match[0]).removeprefix('cannot load: ')}")
        return text

    def check(self) -> None:
        """Raise a ServerError when the server has ended by itself."""
        if (code := self.process.poll()) is not None:
            self.output()
            raise ServerError(f"{self.name} {ended(code)}: see {self.log}")


def start_child(
    command: list[str], log: Path, environment: dict[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a launcher in a session of its own: Ctrl-C in the terminal reaches this process alone, which then stops the server.

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
    """Raise a ServerError when somebody listens on the port already."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerError(
                f"port {port} of {HOST} cannot be used ({error.strerror}): stop the program that has it, "
                "or give another one with --port"
            ) from error


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """Ports of loopback that nobody has, all different."""
    sockets = [socket.socket(socket.AF_INET, kind) for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def scored(url: str, limit: float = 30.0) -> bool:
    """Whether the server at a predict address answers a question within ``limit`` seconds."""
    request = urllib.request.Request(  # noqa: S310 (a literal http address)
        url, json.dumps(PROBE).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=limit) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
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


@contextmanager
def handlers(handler: Callable[[int, object], None] | signal.Handlers, *numbers: int) -> Iterator[None]:
    """Other signal handlers for a while; nothing in a thread, where Python cannot set them and no signal arrives."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that every ``finally`` runs.

    SIGINT too: a shell that starts a job in the background has it ignored, and Python then leaves it so.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with handlers(interrupt, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def signals_later() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is over."""
    seen: list[int] = []
    # No SIG_IGN here: a child inherits that, and Java would never be told to stop.
    with handlers(lambda number, frame: seen.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if seen:
        raise KeyboardInterrupt
