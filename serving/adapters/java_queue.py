"""Queueing time of requests in TorchServe's front end, which does not report it to a worker.

The front end logs the waiting time of every request after it has sent the response, and sends these lines to this process (a UDP
appender of its log, serving/local/log4j2.xml): the wait of a request is known when the next one arrives. The queue is in order, so the
next one was queued later; how much later is unknown, hence an estimate and an upper bound.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

PORT = "THINKTWICE_QUEUE_PORT"  # environment variable: UDP port of this machine that receives the lines
LINE = re.compile(rb"Waiting time ns: (\d+), ")
NO_WAIT = 0.001  # seconds; a request that waited less found the queue empty
IDLE, LONGEST_IDLE = (
    0.002,
    0.02,
)  # seconds without a request after which the queue counts as empty; the longer one after long waits
MAX_WAIT_S = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QueueWait:
    """Queueing time of one request.

    Attributes:
        likely: estimated seconds, from the wait of the previous request.
        at_most: upper bound in seconds.
        idle: whether the server was idle when the request arrived.
    """

    likely: float
    at_most: float
    idle: bool


class JavaQueue:
    """Estimates the wait of each request from that of the previous one.

    Args:
        port: UDP port that receives the lines; None if there are none.
        clock: monotonic seconds.
    """

    def __init__(self, port: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._socket: socket.socket | None = None
        self._came = self._answered = float("-inf")
        self.waited: float | None = None  # seconds that the previous request waited, from the log of the front end
        if port is None:
            return
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            receiver.bind(("127.0.0.1", port))
        except OSError as error:
            receiver.close()
            logger.error("the waiting times of the queue are not known (UDP port %d: %s)", port, error.strerror)
            return
        receiver.setblocking(False)
        self._socket = receiver

    @classmethod
    def from_environment(cls) -> JavaQueue:
        """Create a queue on the port in the environment."""
        text = os.environ.get(PORT, "")
        return cls(int(text) if text.isascii() and text.isdigit() else None)

    def came(self) -> QueueWait:
        """Record the arrival of a request. Returns its wait."""
        now = self._clock()
        self._read()
        previous_wait, gap = self.waited, now - self._answered
        busy_for = now - self._came  # since the previous request arrived
        self._came = now
        if previous_wait is None:
            return QueueWait(0.0, 0.0, gap >= IDLE)
        if gap >= min(max(IDLE, previous_wait / 2), LONGEST_IDLE):
            return QueueWait(0.0, 0.0, True)
        return QueueWait(previous_wait, previous_wait + busy_for if previous_wait > NO_WAIT else previous_wait, False)

    def answered(self) -> None:
        """Record that the response was sent."""
        self._answered = self._clock()

    def close(self) -> None:
        """Close the port."""
        if self._socket is not None:
            self._socket.close()

    def _read(self) -> None:
        """Read the lines received since; the last one is that of the previous request."""
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
