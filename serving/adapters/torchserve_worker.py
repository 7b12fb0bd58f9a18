"""The worker process of TorchServe: what its front end starts, and what answers while no model does.

TorchServe's own worker loads the model into the process that holds the connection. When that dies, the front end lets up to a whole
queue of callers wait until another has loaded the model. This one stays small and starts another process, the scorer
(:mod:`serving.adapters.torchserve_scorer`), on the same connection. While the scorer loads, and as soon as it has died, requests get 503 at
once; the one it was at work on gets 500, for it may have died of it. Then the next scorer is started.

The front end starts it through a file that it takes for its Python (:func:`interpreter_file`), so that the model's folder is not on the
path for imports: no code comes out of an archive.
"""

from __future__ import annotations

import argparse
import logging
import mmap
import os
import platform
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from serving.adapters.torchserve_protocol import ConnectionEndedError, Load, ProtocolError, Reader, answer, loaded
from serving.exits import ended
from serving.protocol.errors import JSON, error_body
from serving.telemetry import logs

ACCEPT_LIMIT = 60.0  # seconds until the front end must have connected
STOP_LIMIT = 15.0  # seconds a scorer may take to write what is left of its prediction log
LONGEST_REST = 30.0  # seconds between two scorers that do not come up
RETRY_AFTER = 5  # seconds, said to callers
WHILE_LOADING = " while it loaded the model"

logger = logging.getLogger("serving.adapters.torchserve_worker")


class WorkerState:
    """What a scorer is doing, in memory that outlives it: ``phase``, and the request it is at work on."""

    BETWEEN, READING, WORKING, WRITING = range(4)
    SIZE = mmap.PAGESIZE

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @property
    def phase(self) -> int:
        return self._memory[0]

    @phase.setter
    def phase(self, phase: int) -> None:
        self._memory[0] = phase

    @property
    def request(self) -> bytes:
        return self._memory[2 : 2 + self._memory[1]]

    def take(self, request: bytes) -> None:
        """From now on, work on a request."""
        self._memory[1 : 2 + len(request)] = bytes([len(request)]) + request
        self._memory[0] = self.WORKING


class _Scorer:
    """The process that scores, on a connection that this one keeps open."""

    def __init__(self, load: Load, connection: socket.socket) -> None:
        self._notebook: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the scorer)
        self._notebook.truncate(WorkerState.SIZE)
        self.desk = WorkerState(mmap.mmap(self._notebook.fileno(), WorkerState.SIZE))
        go, self._go = os.pipe()
        self.news, news = os.pipe()  # a byte: it is ready; the end: it is dead
        command = [sys.executable, "-I", "-u", "-B", "-W", "ignore", "-m", "serving.adapters.torchserve_scorer"]
        command += [load.folder, load.model, *map(str, (connection.fileno(), self._notebook.fileno(), go, news))]
        self._process = subprocess.Popen(
            command, pass_fds=(connection.fileno(), self._notebook.fileno(), go, news), stdin=subprocess.DEVNULL
        )
        os.close(go)
        os.close(news)

    def take_over(self) -> None:
        """Let it read from the connection from now on."""
        with suppress(BrokenPipeError):  # it has just died, as its news will tell
            os.write(self._go, b"g")

    def end(self) -> str:
        """How it ended, after the time it needs to write what is left."""
        os.close(self._go)
        try:
            code = self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        os.close(self.news)
        self._notebook.close()
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(self._process.pid)
        return ended(code)


def serve(connection: socket.socket) -> None:
    """Answer the front end until it ends the connection, or until nobody can tell where in it the next message begins."""
    reader = Reader(connection)
    load = reader.read()
    if not isinstance(load, Load):
        raise RuntimeError("the front end asks before it has named a model")
    connection.sendall(loaded())
    rest = 0.0
    while True:
        scorer = _Scorer(load, connection)
        try:
            came_up = _until_it_is_ready(scorer, connection, reader, load)
        except BaseException:
            scorer.end()
            raise
        if came_up:
            scorer.take_over()
            _until_it_ends(scorer, connection)
        phase, request = scorer.desk.phase, scorer.desk.request
        how = scorer.end()
        if came_up and _gone(connection):
            return
        logger.error("the scorer %s%s: another is started", how, "" if came_up else WHILE_LOADING)
        if phase == WorkerState.WORKING:
            connection.sendall(
                _refusal(request, 500, "the process that scored died while it was at work on this request")
            )
        elif phase != WorkerState.BETWEEN:
            return  # it died within a message: the front end makes a new connection
        rest = 0.0 if came_up else min(max(1.0, 2 * rest), LONGEST_REST)
        _stand_in(connection, reader, time.monotonic() + rest, load)


def _until_it_is_ready(scorer: _Scorer, connection: socket.socket, reader: Reader, load: Load) -> bool:
    """Answer in its place; whether it came up."""
    while True:
        ready: list[int] = select.select([scorer.news, connection.fileno()], [], [])[0]
        if scorer.news in ready:
            return bool(os.read(scorer.news, 1))
        _answer_one(connection, reader, load)


def _until_it_ends(scorer: _Scorer, connection: socket.socket) -> None:
    """Wait for its end, or for that of the connection."""
    poll = select.poll()
    poll.register(scorer.news, select.POLLIN)
    poll.register(connection, 0)  # tells its end alone
    poll.poll()


def _stand_in(connection: socket.socket, reader: Reader, until: float, load: Load) -> None:
    while (left := until - time.monotonic()) > 0:
        if select.select([connection], [], [], left)[0]:
            _answer_one(connection, reader, load)


def _answer_one(connection: socket.socket, reader: Reader, load: Load) -> None:
    message = reader.read()
    if isinstance(message, Load):
        connection.sendall(loaded())
        return
    connection.sendall(_refusal(message.id, 503, f"model {load.model} is being loaded: try again later"))


def _refusal(request: bytes, status: int, text: str) -> bytes:
    phrase = "Service Unavailable" if status == 503 else "Internal Server Error"
    headers = {"content-type": JSON, "retry-after": str(RETRY_AFTER)} if status == 503 else {"content-type": JSON}
    return answer(request, status, phrase, headers, error_body(text))


def _gone(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


@contextmanager
def _connected(kind: str, place: str) -> Iterator[socket.socket]:
    """The connection of the front end to a socket at ``place``: a path, or a port of this machine."""
    if kind == "unix":
        with suppress(FileNotFoundError):
            Path(place).unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(place)
    else:
        listener = socket.create_server(("127.0.0.1", int(place)))
    try:
        listener.listen(1)
        # What the front end waits for.
        said = (f"[PID]{os.getpid()}", "Torch worker started.", f"Python runtime: {platform.python_version()}", "")
        sys.stdout.write("\n".join(said))
        sys.stdout.flush()
        listener.settimeout(ACCEPT_LIMIT)
        connection, _ = listener.accept()
    finally:
        listener.close()
        if kind == "unix":
            with suppress(FileNotFoundError):
                Path(place).unlink()
    connection.setblocking(True)
    with connection:
        yield connection


def interpreter_file(path: Path, python: str = sys.executable) -> Path:
    """Write what the front end is to call as its Python (``--python``): it starts this worker, whatever script it is given."""
    path.write_text(
        f'#!/bin/sh\nexec {shlex.quote(python)} -I -B -m serving.adapters.torchserve_worker "$@"\n', encoding="utf-8"
    )
    path.chmod(0o700)
    return path


def main(arguments: list[str]) -> int:
    """As the front end calls it: ``SCRIPT --sock-type unix --sock-name PATH ...``."""
    parser = argparse.ArgumentParser(prog="python -m serving.adapters.torchserve_worker")
    parser.add_argument("script", help="of TorchServe's own worker; not run")
    parser.add_argument("--sock-type", required=True)
    parser.add_argument("--sock-name", default="")
    parser.add_argument("--port", default="")
    chosen, _ = parser.parse_known_args(arguments)
    logs.configure()
    try:
        with _connected(chosen.sock_type, chosen.sock_name or chosen.port) as connection:
            serve(connection)
    except (ConnectionEndedError, BrokenPipeError, ConnectionResetError):
        pass  # the front end is gone
    except ProtocolError as error:
        logger.error("what the front end sends cannot be read (%s): it is asked for a new connection", error)
    except TimeoutError:
        logger.error("the front end did not connect within %.0f s", ACCEPT_LIMIT)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
