"""What a request gets under the present load: its answer in time, extra paths only while there is room, or a refusal at once.

A request that had to wait for another gets base passes alone, so extra paths are worked on only while nobody stands in line:
as load grows fewer requests get them, at full load none. Then requests that cannot be answered before their deadline are
refused. A refusal costs next to nothing, so what is accepted stays in time and nothing waits without bound.

While nobody else waits, a request is refused only if it is proved that its time does not suffice: a wrong estimate must not
keep an idle server from answering. Under load the estimate decides, and a size it keeps refusing is tried again now and then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from serving.cost import CostModel
from serving.deadline import Deadline
from thinktwice.errors import OverloadedError

WINDOW = 1.0  # seconds over which the share of requests that had to wait is taken
WAITED = 0.5  # of the cost of a request: one that stood behind another for longer had to wait
MIN_QUEUE_WAIT_S = 0.001  # seconds; less is the network
CLOCK_DRIFT_RATE = 5e-5  # seconds per second: how fast the shortest latency is let grow, because clocks drift
RESPONSE_LATENCY_S = 0.002  # assumed time of an answer on its way to the caller
SMOOTHING = 0.1  # weight of a request in the usual cost of one, which only tells callers when to try again


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
        self._usual = 0.0
        self._cost = CostModel()

    def warmed_up(self, costs: Sequence[tuple[int, float]]) -> None:
        """Take in what the warm-up measured, as (rows, seconds); before, every cost is unknown and nothing is refused for it."""
        with self._lock:
            self._usual = min((seconds for _, seconds in costs), default=0.0)
            self._cost = CostModel(costs)

    @property
    def idle(self) -> bool:
        """Whether no request is inside."""
        return self._inside == 0

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
                wait = self._usual * self._inside / self._workers
                raise OverloadedError(
                    f"{self._inside} requests wait already: try again later", retry_after=wait, status=429
                )
            self._inside += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._inside -= 1

    def refuse_hopeless(self, deadline: Deadline) -> None:
        """Refuse a request whose turn has come and that is too late whatever it asks, before it is even read.

        Raises:
            OverloadedError: its time is over, or as good as over.
        """
        with self._lock:
            least = self._cost.least()
            left = deadline.left(self._clock()) - RESPONSE_LATENCY_S
        if left <= 0 or left < least:
            raise too_late(left, least)

    def admit(self, deadline: Deadline, rows: int, queued: float) -> bool:
        """Let a request in, whose turn has come, and tell whether it may ask extra paths.

        Args:
            deadline: of the request.
            rows: of the request.
            queued: seconds since it was sent, or came in where nobody says when it was sent.

        Raises:
            OverloadedError: what is left does not suffice even for base passes; no work is done for it.
        """
        with self._lock:
            now = self._clock()
            likely = self._cost.seconds(rows)
            busy = self._had_to_wait(queued, likely, now) or self.waiting > 0
            left = deadline.left(now) - RESPONSE_LATENCY_S
            needed = self._cost.at_most(rows) if busy else likely
            if left < needed and (
                left <= 0
                or (
                    not self._cost.try_again(rows, left, needed, now)
                    if busy
                    else self._cost.too_little(rows, left, now)
                )
            ):
                raise too_late(left, needed)
            return not (self._shed and busy)

    def waiting_share(self) -> float:
        """Share of the last second's requests that had to wait for another; 0 without any."""
        with self._lock:
            self._forget(self._clock())
            return self._waited / len(self._recent) if self._recent else 0.0

    def finished(self, rows: int, seconds: float, extra_seconds: float) -> None:
        """Take in what a request cost; ``extra_seconds`` of it went into extra paths, which the next one need not ask."""
        with self._lock:
            self._ended = self._clock()
            cost = max(seconds - extra_seconds, 0.0)
            self._cost.add(rows, cost, self._ended)
            self._usual += SMOOTHING * (min(cost, 10 * self._usual) - self._usual) if self._usual > 0 else cost

    def _had_to_wait(self, queued: float, likely: float, now: float) -> bool:
        """Whether the request stood behind another for a notable time."""
        self._way = min(self._way + CLOCK_DRIFT_RATE * (now - self._seen), queued)
        self._seen = now
        # Count only time spent queued behind another request: a sleeping server that wakes up slowly has no queue.
        behind = queued - self._way - (now - self._ended)
        waited = behind > max(WAITED * likely, MIN_QUEUE_WAIT_S)
        self._recent.append((now, waited))
        self._waited += waited
        self._forget(now)
        return waited

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - WINDOW:
            self._waited -= self._recent.popleft()[1]


def too_late(left: float, needed: float) -> OverloadedError:
    """The refusal of a request that has ``left`` seconds, not counting the way back, and seems to need ``needed``."""
    left_ms, needed_ms = (1000 * (seconds + RESPONSE_LATENCY_S) for seconds in (left, needed))
    if left <= 0:
        text = "no time is left before the deadline"
    else:
        text = f"{left_ms:.0f} ms are left before the deadline and the answer needs about {needed_ms:.0f}"
    return OverloadedError(
        # Time that was over before says nothing about when to try again.
        f"{text}: try again later, or give more time",
        retry_after=max(needed - max(left, 0.0), 0.0),
        status=503,
    )
