"""What a request may cost now: its answer in time, extra paths only while there is room, or a refusal at once.

A request that had to wait for another gets base passes alone, so extra paths are worked on only while nobody stands in line:
as load grows fewer requests get them, at full load none. Then requests that cannot be answered before their deadline are
refused. A refusal costs next to nothing, so what is accepted stays in time and nothing waits without bound.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from serving.deadline import Deadline
from thinktwice.errors import OverloadedError

WINDOW = 1.0  # seconds over which the share of requests that had to wait is taken
WAITED = 0.5  # of the cost of a request: who stood behind another for longer had to wait
LEAST_WAIT = 0.001  # seconds; less is the network
FORGET = 5e-5  # a second: how fast the shortest way here is taken to grow, so that clocks may drift
WAY_BACK = 0.002  # seconds from here to the caller
DECAY = 0.98  # weight that a measured cost keeps at each further request
RESERVE = 1.25  # a request is reckoned this much dearer than the average one of its size


class CostModel:
    """Seconds of a request as ``fixed + per_row * rows``, least squares with forgetting over what was measured."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Take one measured request in."""
        self._n = DECAY * self._n + 1
        self._x = DECAY * self._x + rows
        self._y = DECAY * self._y + seconds
        self._xx = DECAY * self._xx + rows * rows
        self._xy = DECAY * self._xy + rows * seconds

    def seconds(self, rows: int) -> float:
        """Expected seconds of a request of so many rows; 0 before anything was measured."""
        if self._n == 0:
            return 0.0
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        slope = (self._xy / self._n - mean_x * mean_y) / spread if spread > 1e-9 * (1 + mean_x * mean_x) else None
        if slope is None:  # all requests had one size: the cost of another is taken to grow in proportion
            return mean_y * (rows / mean_x if rows > mean_x > 0 else 1.0)
        return max(mean_y + max(slope, 0.0) * (rows - mean_x), 0.0)


class Admission:
    """Shared by all threads of one process.

    Whether there is load is told by waiting alone: a caller that sends one request after the other keeps a worker busy all
    the time, and still nobody waits.

    Args:
        workers: requests that are scored at the same time.
        queue: requests that may wait beside them.
        shed: whether a request that had to wait loses its extra paths.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        workers: int,
        queue: int,
        shed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers, self._queue = workers, queue
        self._shed, self._clock = shed, clock
        self._lock = threading.Lock()
        self._inside = 0
        self._recent: deque[tuple[float, bool]] = deque()  # (when, had to wait) of the requests in the window
        self._waited = 0
        self._seen = clock()
        self._ended = clock()  # when the last request was done with
        self._way = float("inf")  # shortest time from a caller to here: the network, and what his clock is off
        self.cost = CostModel()

    @property
    def waiting(self) -> int:
        """Requests inside beyond those that are being scored."""
        return max(0, self._inside - self._workers)

    def enter(self) -> None:
        """Take a place in the queue. Every ``enter`` that returns needs a :meth:`leave`.

        Raises:
            OverloadedError: all places are taken.
        """
        with self._lock:
            if self._inside >= self._workers + self._queue:
                wait = self.cost.seconds(1) * self._inside / self._workers
                raise OverloadedError(
                    f"{self._inside} requests wait already: try again later", retry_after=wait, status=429
                )
            self._inside += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._inside -= 1

    def admit(self, deadline: Deadline, rows: int) -> None:
        """Refuse a request that would be late even with base passes alone, before any work is done for it.

        Raises:
            OverloadedError: what is left is less than such a request takes.
        """
        with self._lock:
            needed = RESERVE * self.cost.seconds(rows) + WAY_BACK
        left = deadline.left(self._clock())
        if left < needed:
            raise OverloadedError(
                f"{max(left, 0) * 1000:.0f} ms are left before the deadline and the answer needs about {needed * 1000:.0f}: "
                "try again later, or give more time",
                retry_after=max(needed - left, 0.0),
                status=503,
            )

    def extra_paths(self, queued: float, rows: int) -> bool:
        """Whether a request may ask extra paths now: it did not wait for another, and no other is known to wait for it.

        Args:
            queued: seconds since the request was sent, or came in where the caller does not say.
            rows: of the request.
        """
        with self._lock:
            now = self._clock()
            self._way = min(self._way + FORGET * (now - self._seen), queued)
            self._seen = now
            # Only what passed while another was at work: a sleeping server that wakes up slowly has no queue.
            behind = queued - self._way - (now - self._ended)
            waited = behind > max(WAITED * self.cost.seconds(rows), LEAST_WAIT)
            self._recent.append((now, waited))
            self._waited += waited
            self._forget(now)
            return not (self._shed and (waited or self.waiting > 0))

    def waiting_share(self) -> float:
        """Share of the last second's requests that had to wait for another; 0 without any."""
        with self._lock:
            self._forget(self._clock())
            return self._waited / len(self._recent) if self._recent else 0.0

    def finished(self, rows: int, seconds: float, extra_seconds: float) -> None:
        """Take in what a request cost; ``extra_seconds`` of it went into extra paths, which the next one need not ask."""
        with self._lock:
            self.cost.add(rows, max(seconds - extra_seconds, 0.0))
            self._ended = self._clock()

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - WINDOW:
            self._waited -= self._recent.popleft()[1]
