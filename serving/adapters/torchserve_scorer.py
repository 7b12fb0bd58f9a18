"""The process that scores behind TorchServe: loads the model, then answers the requests that come over the worker's connection.

    python -m serving.adapters.torchserve_scorer FOLDER MODEL CONNECTION NOTEBOOK GO NEWS

The last four are numbers of open files that the worker (:mod:`serving.adapters.torchserve_worker`) hands down.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing

from serving.adapters.java_queue import JavaQueue
from serving.adapters.torchserve_handler import load
from serving.adapters.torchserve_protocol import (
    ConnectionEndedError,
    Load,
    Predict,
    ProtocolError,
    Reader,
    answer,
    loaded,
)
from serving.adapters.torchserve_worker import WorkerState
from serving.exits import leave_after
from serving.service import Service
from serving.telemetry import logs
from thinktwice.errors import RequestError

#: Headers that the front end adds: whether an explanation is asked for, and the path behind /predictions/MODEL.
EXPLAIN, PATH = b"explain", b"url_path"

logger = logging.getLogger("serving.adapters.torchserve_scorer")


def serve(connection: socket.socket, desk: WorkerState, service: Service, queue: JavaQueue) -> None:
    """Answer requests until the front end ends the connection."""

    def begun() -> None:
        desk.phase = WorkerState.READING

    reader = Reader(connection, begun)
    try:
        while True:
            message = reader.read()
            if isinstance(message, Load):
                said = loaded()
            else:
                wait = queue.came()
                desk.take(message.id)
                headers = _headers(message)
                arrival = service.arrival(headers, idle=wait.idle, waited=wait.likely, at_most=wait.at_most)
                problem = _problem(message)
                if problem is None:
                    reply = service.answer(message.body, headers, arrival)
                else:
                    reply = service.refuse(problem, headers, arrival)
                said = answer(message.id, reply.status, reply.phrase, reply.headers, reply.body)
            desk.phase = WorkerState.WRITING
            connection.sendall(said)
            desk.phase = WorkerState.BETWEEN
            queue.answered()
    except (ConnectionEndedError, BrokenPipeError, ConnectionResetError):
        return
    except ProtocolError as error:
        logger.error("what the front end sends cannot be read (%s): it is asked for a new connection", error)


def _headers(message: Predict) -> dict[str, str]:
    """By lower-case name. Of names that differ in case alone any may win: the front end keeps no order."""
    return {n.decode("utf-8", "replace").lower(): v.decode("utf-8", "replace") for n, v in message.headers.items()}


def _problem(message: Predict) -> RequestError | None:
    """Why a request is refused that the front end takes for a prediction and that is none."""
    if message.headers.get(EXPLAIN) != b"False" or PATH in message.headers:
        return RequestError(
            "nothing is here: predictions are at /v1/models/MODEL:predict and /v2/models/MODEL/infer",
            field="path",
            status=404,
        )
    return None


def main(arguments: list[str]) -> int:
    """Load, tell so, wait for the word to begin, serve."""
    folder, model = arguments[:2]
    connection, notebook, go, news = map(int, arguments[2:])
    logs.configure()
    service = load(folder, model)
    finish = _once(service.close)
    desk = WorkerState(mmap.mmap(notebook, WorkerState.SIZE))
    os.write(news, b"r")  # stays open: its end tells the worker of ours
    if not os.read(go, 1):
        finish()
        return 0
    threading.Thread(target=_end_with_the_worker, args=(go, finish), daemon=True).start()
    with socket.socket(fileno=connection) as found, closing(JavaQueue.from_environment()) as queue:
        serve(found, desk, service, queue)
    finish()
    return 0


def _end_with_the_worker(go: int, finish: Callable[[], None]) -> None:
    """The worker holds the other end of ``go`` as long as it lives."""
    while os.read(go, 1):
        pass
    finish()
    os._exit(1)


def _once(close: Callable[[], None]) -> Callable[[], None]:
    """Close from whichever thread comes first; the other waits."""
    lock, done = threading.Lock(), False

    def finish() -> None:
        nonlocal done
        with lock:
            if not done:
                close()
            done = True

    return finish


if __name__ == "__main__":
    leave_after(lambda: main(sys.argv[1:]))
