"""How long TorchServe's front end kept a request in its queue, which it does not tell a worker.

It does log the waiting time of every request when it has passed its answer on, and sends these lines here (a UDP appender of its
log, serving/local/log4j2.xml): the wait of a request is known when the next one comes. A queue serves in order, so the next one came
later; how much later is not known, hence an estimate and an upper bound.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

PORT = "THINKTWICE_QUEUE_PORT"  # environment: of this machine, where the lines arrive
LINE = re.compile(rb"Waiting time ns: (\d+), ")
NO_WAIT = 0.001  # seconds; who waited less found the queue empty
IDLE, LONGEST_IDLE = (
    0.002,
    0.02,
)  # seconds without a request after which the queue was empty; the longer after long waits
MAX_WAIT_S = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueueWait:
    """Of one request, seconds: as that of the one before, and at most; and whether it found the server with nothing to do."""

    likely: float
    at_most: float
    idle: bool


class JavaQueue:
    """Estimates the wait of each request from that of the one before.

    Args:
        port: where the lines arrive; None where nobody sends any.
        clock: monotonic seconds.
    """

    def __init__(self, port: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._socket: socket.socket | None = None
        self._came = self._answered = float("-inf")
        self.waited: float | None = None  # seconds, of the request before, as the front end has said
        if port is None:
            return
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            found.bind(("127.0.0.1", port))
        except OSError as error:
            found.close()
            logger.error("the waiting times of the queue are not known (UDP port %d: %s)", port, error.strerror)
            return
        found.setblocking(False)
        self._socket = found

    @classmethod
    def from_environment(cls) -> JavaQueue:
        """On the port that the environment names."""
        text = os.environ.get(PORT, "")
        return cls(int(text) if text.isascii() and text.isdigit() else None)

    def came(self) -> QueueWait:
        """A request has come: its wait."""
        now = self._clock()
        self._read()
        before, gap = self.waited, now - self._answered
        busy_for = now - self._came  # since the one before came here
        self._came = now
        if before is None:
            return QueueWait(0.0, 0.0, gap >= IDLE)
        if gap >= min(max(IDLE, before / 2), LONGEST_IDLE):
            return QueueWait(0.0, 0.0, True)
        return QueueWait(before, before + busy_for if before > NO_WAIT else before, False)

    def answered(self) -> None:
        """Its answer is on its way."""
        self._answered = self._clock()

    def close(self) -> None:
        """Give the port back."""
        if self._socket is not None:
            self._socket.close()

    def _read(self) -> None:
        """Take in what the front end has said since; the last line is that of the request before."""
        if self._socket is None:
            return
        last = b""
        while True:
            try:
                last = self._socket.recv(256) or last
            except BlockingIOError:
                break
        if (match := LINE.match(last)) is not None:
            self.waited = min(int(match[1]) / 1e9, MAX_WAIT_S)
