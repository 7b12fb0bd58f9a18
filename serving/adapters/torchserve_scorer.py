"""Scoring process behind TorchServe: loads the model, then answers the requests on the worker's connection.

    python -m serving.adapters.torchserve_scorer FOLDER MODEL CONNECTION STATE_FILE START_PIPE READY_PIPE

The last four are file descriptors inherited from the worker (:mod:`serving.adapters.torchserve_worker`).
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

#: Headers added by the front end: whether an explanation is requested, and the path after /predictions/MODEL.
EXPLAIN, PATH = b"explain", b"url_path"

logger = logging.getLogger("serving.adapters.torchserve_scorer")


def serve(connection: socket.socket, state: WorkerState, service: Service, queue: JavaQueue) -> None:
    """Answer requests until the front end closes the connection."""

    def begun() -> None:
        state.phase = WorkerState.READING

    reader = Reader(connection, begun)
    try:
        while True:
            message = reader.read()
            if isinstance(message, Load):
                response = loaded()
            else:
                wait = queue.came()
                state.take(message.id)
                headers = _headers(message)
                arrival = service.arrival(headers, idle=wait.idle, waited=wait.likely, at_most=wait.at_most)
                problem = _problem(message)
                if problem is None:
                    reply = service.answer(message.body, headers, arrival)
                else:
                    reply = service.refuse(problem, headers, arrival)
                response = answer(message.id, reply.status, reply.phrase, reply.headers, reply.body)
            state.phase = WorkerState.WRITING
            connection.sendall(response)
            state.phase = WorkerState.BETWEEN
            queue.answered()
    except (ConnectionEndedError, BrokenPipeError, ConnectionResetError):
        return
    except ProtocolError as error:
        logger.error(
            "the data from the front end cannot be parsed (%s): the connection is closed, the front end opens a new one",
            error,
        )


def _headers(message: Predict) -> dict[str, str]:
    """Headers by lower-case name. If names differ only in case, any may win: the front end keeps no order."""
    return {n.decode("utf-8", "replace").lower(): v.decode("utf-8", "replace") for n, v in message.headers.items()}


def _problem(message: Predict) -> RequestError | None:
    """The error for a request that the front end passes on although it is not a prediction, else None."""
    if message.headers.get(EXPLAIN) != b"False" or PATH in message.headers:
        return RequestError(
            "not found: predictions are at /v1/models/MODEL:predict and /v2/models/MODEL/infer",
            field="path",
            status=404,
        )
    return None


def main(arguments: list[str]) -> int:
    """Load, report readiness, wait for the start signal, serve."""
    folder, model = arguments[:2]
    connection, state_file, start_pipe, ready_pipe = map(int, arguments[2:])
    logs.configure()
    service = load(folder, model)
    finish = _once(service.close)
    state = WorkerState(mmap.mmap(state_file, WorkerState.SIZE))
    os.write(ready_pipe, b"r")  # stays open: its closing tells the worker that this process ended
    if not os.read(start_pipe, 1):
        finish()
        return 0
    threading.Thread(target=_end_with_the_worker, args=(start_pipe, finish), daemon=True).start()
    with socket.socket(fileno=connection) as inherited, closing(JavaQueue.from_environment()) as queue:
        serve(inherited, state, service, queue)
    finish()
    return 0


def _end_with_the_worker(start_pipe: int, finish: Callable[[], None]) -> None:
    """End this process when the worker ends, which closes the other end of ``start_pipe``."""
    while os.read(start_pipe, 1):
        pass
    finish()
    os._exit(1)


def _once(close: Callable[[], None]) -> Callable[[], None]:
    """Make a function that closes once, from the first thread that calls it; other threads wait."""
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
