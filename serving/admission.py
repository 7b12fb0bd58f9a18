"""What a request may cost now: its answer in time, extra paths only while there is room, or a refusal at once.

Under load the order is: extra paths become fewer, then none, then requests that cannot be answered before their deadline are
refused. A refusal costs next to nothing, so what is accepted stays in time and nothing waits without bound.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from serving.deadline import Deadline
from thinktwice.errors import OverloadedError

WINDOW = 1.0  # seconds over which the busy share is taken
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

    Args:
        workers: requests that are scored at the same time.
        queue: requests that may wait beside them.
        shed_from: busy share from which extra paths become fewer.
        shed_all: busy share at which there are none.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        workers: int,
        queue: int,
        shed_from: float,
        shed_all: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers, self._queue = workers, queue
        self._shed_from, self._shed_all = shed_from, max(shed_all, shed_from + 1e-6)
        self._clock = clock
        self._lock = threading.Lock()
        self._inside = 0
        self._busy: deque[tuple[float, float]] = deque()  # (end, seconds) of finished requests in the window
        self._busy_sum = 0.0
        self._born = clock()
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
            needed = RESERVE * self.cost.seconds(rows)
        left = deadline.left(self._clock())
        if left < needed:
            raise OverloadedError(
                f"{max(left, 0) * 1000:.0f} ms are left before the deadline and the answer needs about {needed * 1000:.0f}: "
                "try again later, or give more time",
                retry_after=max(needed - left, 0.0),
                status=503,
            )

    def path_share(self) -> float:
        """Share of the usual extra paths that a request may ask now: 1 with room to spare, 0 when the process is full."""
        if self.waiting > self._queue / 2 > 0:
            return 0.0
        busy = self.busy_share()
        return min(1.0, max(0.0, (self._shed_all - busy) / (self._shed_all - self._shed_from)))

    def busy_share(self) -> float:
        """Share of the workers' time of the last second that went into requests."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            span = min(WINDOW, max(now - self._born, 1e-3))
            return min(1.0, self._busy_sum / (span * self._workers)) if span >= WINDOW / 2 else 0.0

    def finished(self, rows: int, seconds: float, extra_seconds: float) -> None:
        """Take in what a request cost; ``extra_seconds`` of it went into extra paths, which the next one need not ask."""
        with self._lock:
            now = self._clock()
            self._busy.append((now, seconds))
            self._busy_sum += seconds
            self._forget(now)
            self.cost.add(rows, max(seconds - extra_seconds, 0.0))

    def _forget(self, now: float) -> None:
        while self._busy and self._busy[0][0] <= now - WINDOW + 1e-9:
            self._busy_sum -= self._busy.popleft()[1]
        if not self._busy:
            self._busy_sum = 0.0
