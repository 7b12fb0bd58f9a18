"""Worker process of TorchServe: started by its front end, and answers requests while no model is loaded.

TorchServe's own worker loads the model into the process that has the connection. When that process dies, up to a full queue of callers
waits until another one has loaded the model. This worker stays small and starts another process, the scorer
(:mod:`serving.adapters.torchserve_scorer`), on the same connection. While the scorer loads, and as soon as it has died, requests get 503
at once; the request in progress gets 500, because it may have caused the death. Then the next scorer is started.

The front end starts the worker through a file that is configured as its Python (:func:`interpreter_file`), so that the model's folder
is not on the import path: no code is loaded from an archive.
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

ACCEPT_LIMIT = 60.0  # seconds within which the front end must connect
STOP_LIMIT = 15.0  # seconds for a scorer to write the remaining prediction log
LONGEST_REST = 30.0  # maximum seconds between scorers that fail to start
RETRY_AFTER = 5  # seconds, sent to callers
WHILE_LOADING = " while it loaded the model"

logger = logging.getLogger("serving.adapters.torchserve_worker")


class WorkerState:
    """State of a scorer, in memory that outlives it: ``phase``, and the id of the request in progress."""

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
        """Record that a request is in progress."""
        self._memory[1 : 2 + len(request)] = bytes([len(request)]) + request
        self._memory[0] = self.WORKING


class _Scorer:
    """The scoring process, on a connection that this process keeps open."""

    def __init__(self, load: Load, connection: socket.socket) -> None:
        self._state_file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the scorer)
        self._state_file.truncate(WorkerState.SIZE)
        self.state = WorkerState(mmap.mmap(self._state_file.fileno(), WorkerState.SIZE))
        start_read, self._start_pipe = os.pipe()
        self.ready_pipe, ready_write = os.pipe()  # a byte: the scorer is ready; end of file: it is dead
        command = [sys.executable, "-I", "-u", "-B", "-W", "ignore", "-m", "serving.adapters.torchserve_scorer"]
        command += [
            load.folder,
            load.model,
            *map(str, (connection.fileno(), self._state_file.fileno(), start_read, ready_write)),
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(connection.fileno(), self._state_file.fileno(), start_read, ready_write),
            stdin=subprocess.DEVNULL,
        )
        os.close(start_read)
        os.close(ready_write)

    def take_over(self) -> None:
        """Let the scorer read from the connection from now on."""
        with suppress(BrokenPipeError):  # it has just died, which ``ready_pipe`` will report
            os.write(self._start_pipe, b"g")

    def end(self) -> str:
        """Stop the scorer, giving it time to write its logs. Returns how it ended."""
        os.close(self._start_pipe)
        try:
            code = self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        os.close(self.ready_pipe)
        self._state_file.close()
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(self._process.pid)
        return ended(code)


def serve(connection: socket.socket) -> None:
    """Answer the front end until it closes the connection, or until the start of the next message is unknown."""
    reader = Reader(connection)
    load = reader.read()
    if not isinstance(load, Load):
        raise RuntimeError("the front end sent a request before a model")
    connection.sendall(loaded())
    pause = 0.0
    while True:
        scorer = _Scorer(load, connection)
        try:
            started = _until_it_is_ready(scorer, connection, reader, load)
        except BaseException:
            scorer.end()
            raise
        if started:
            scorer.take_over()
            _until_it_ends(scorer, connection)
        phase, request = scorer.state.phase, scorer.state.request
        exit_status = scorer.end()
        if started and _gone(connection):
            return
        logger.error("the scorer %s%s: another is started", exit_status, "" if started else WHILE_LOADING)
        if phase == WorkerState.WORKING:
            connection.sendall(_refusal(request, 500, "the scoring process died while it processed this request"))
        elif phase != WorkerState.BETWEEN:
            return  # it died within a message: the front end opens a new connection
        pause = 0.0 if started else min(max(1.0, 2 * pause), LONGEST_REST)
        _stand_in(connection, reader, time.monotonic() + pause, load)


def _until_it_is_ready(scorer: _Scorer, connection: socket.socket, reader: Reader, load: Load) -> bool:
    """Answer requests until the scorer is ready. Returns whether it started."""
    while True:
        ready: list[int] = select.select([scorer.ready_pipe, connection.fileno()], [], [])[0]
        if scorer.ready_pipe in ready:
            return bool(os.read(scorer.ready_pipe, 1))
        _answer_one(connection, reader, load)


def _until_it_ends(scorer: _Scorer, connection: socket.socket) -> None:
    """Wait for the end of the scorer or of the connection."""
    poll = select.poll()
    poll.register(scorer.ready_pipe, select.POLLIN)
    poll.register(connection, 0)  # reports only its end
    poll.poll()


def _stand_in(connection: socket.socket, reader: Reader, until: float, load: Load) -> None:
    while (remaining := until - time.monotonic()) > 0:
        if select.select([connection], [], [], remaining)[0]:
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
def _connected(kind: str, address: str) -> Iterator[socket.socket]:
    """Accept the connection of the front end on a socket at ``address``: a path, or a port of this machine."""
    if kind == "unix":
        with suppress(FileNotFoundError):
            Path(address).unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address)
    else:
        listener = socket.create_server(("127.0.0.1", int(address)))
    try:
        listener.listen(1)
        # The output that the front end waits for.
        greeting = (f"[PID]{os.getpid()}", "Torch worker started.", f"Python runtime: {platform.python_version()}", "")
        sys.stdout.write("\n".join(greeting))
        sys.stdout.flush()
        listener.settimeout(ACCEPT_LIMIT)
        connection, _ = listener.accept()
    finally:
        listener.close()
        if kind == "unix":
            with suppress(FileNotFoundError):
                Path(address).unlink()
    connection.setblocking(True)
    with connection:
        yield connection


def interpreter_file(path: Path, python: str = sys.executable) -> Path:
    """Write the file that the front end calls as its Python (``--python``): it starts this worker, whatever script it is given."""
    path.write_text(
        f'#!/bin/sh\nexec {shlex.quote(python)} -I -B -m serving.adapters.torchserve_worker "$@"\n', encoding="utf-8"
    )
    path.chmod(0o700)
    return path


def main(arguments: list[str]) -> int:
    """Entry point, called by the front end: ``SCRIPT --sock-type unix --sock-name PATH ...``."""
    parser = argparse.ArgumentParser(prog="python -m serving.adapters.torchserve_worker")
    parser.add_argument("script", help="of TorchServe's own worker; not run")
    parser.add_argument("--sock-type", required=True)
    parser.add_argument("--sock-name", default="")
    parser.add_argument("--port", default="")
    options, _ = parser.parse_known_args(arguments)
    logs.configure()
    try:
        with _connected(options.sock_type, options.sock_name or options.port) as connection:
            serve(connection)
    except (ConnectionEndedError, BrokenPipeError, ConnectionResetError):
        pass  # the front end has closed the connection
    except ProtocolError as error:
        logger.error(
            "the data from the front end cannot be parsed (%s): the connection is closed, the front end opens a new one",
            error,
        )
    except TimeoutError:
        logger.error("the front end did not connect within %.0f s", ACCEPT_LIMIT)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
