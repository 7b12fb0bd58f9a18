"""Admission control: decides under the current load whether a request is refused, and whether it may use extra paths.

A request that was queued behind another gets base passes only, so extra paths are computed only while the queue is empty: as load
grows, fewer requests get them, and none at full load. Beyond that, requests that cannot be answered before their deadline are
refused. A refusal costs almost nothing, so accepted requests meet their deadlines and no request waits without bound.

While the queue is empty, a request is refused only if measurements prove that its time is too short: a wrong estimate must not
keep an idle server from answering. Under load the estimate decides, and a size that it keeps refusing is retried from time to time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from serving.cost import CostModel
from serving.deadline import Deadline
from thinktwice.errors import OverloadedError

WINDOW = 1.0  # seconds over which the share of queued requests is computed
WAITED = 0.5  # of the cost of a request: one that was queued behind another for longer counts as queued
MIN_QUEUE_WAIT_S = 0.001  # seconds; shorter waits are network latency
CLOCK_DRIFT_RATE = 5e-5  # seconds per second: how fast the shortest latency may grow, because clocks drift
RESPONSE_LATENCY_S = 0.002  # assumed time for a response to reach the caller
SMOOTHING = 0.1  # weight of one request in the usual cost, which is used only for Retry-After


class Admission:
    """Admission control shared by all threads of one process.

    Queueing alone indicates load: a caller that sends one request after the other keeps a worker busy all the time, and still
    no request waits.

    Args:
        workers: number of requests that are scored concurrently.
        queue: number of requests that may wait in addition.
        shed: whether a request that was queued loses its extra paths.
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
        self._recent: deque[tuple[float, bool]] = deque()  # (time, was queued) of the requests in the window
        self._waited = 0
        self._updated = clock()
        self._ended = clock()  # when the last request finished
        self._min_latency = float(
            "inf"
        )  # shortest request latency seen: the network, and the offset of the caller's clock
        self._usual_cost = 0.0
        self._cost = CostModel()

    def warmed_up(self, costs: Sequence[tuple[int, float]]) -> None:
        """Set the costs measured by the warm-up, as (rows, seconds). Until then costs are unknown and no request is refused for them."""
        with self._lock:
            self._usual_cost = min((seconds for _, seconds in costs), default=0.0)
            self._cost = CostModel(costs)

    @property
    def idle(self) -> bool:
        """Whether no request is queued or being scored."""
        return self._inside == 0

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        return max(0, self._inside - self._workers)

    def enter(self) -> None:
        """Enter the queue. Every ``enter`` that returns needs a :meth:`leave`.

        Raises:
            OverloadedError: the queue is full.
        """
        with self._lock:
            if self._inside >= self._workers + self._queue:
                wait = self._usual_cost * self._inside / self._workers
                raise OverloadedError(
                    f"{self._inside} requests wait already: try again later", retry_after=wait, status=429
                )
            self._inside += 1

    def leave(self) -> None:
        """Leave the queue."""
        with self._lock:
            self._inside -= 1

    def refuse_hopeless(self, deadline: Deadline) -> None:
        """Refuse a dequeued request that is too late whatever it contains, before it is parsed.

        Raises:
            OverloadedError: its deadline has passed, or is too close for any request.
        """
        with self._lock:
            least = self._cost.least()
            remaining = deadline.left(self._clock()) - RESPONSE_LATENCY_S
        if remaining <= 0 or remaining < least:
            raise too_late(remaining, least)

    def admit(self, deadline: Deadline, rows: int, queued: float) -> bool:
        """Admit a dequeued request. Returns whether it may use extra paths.

        Args:
            deadline: of the request.
            rows: of the request.
            queued: seconds since it was sent, or since it arrived if the sending time is unknown.

        Raises:
            OverloadedError: the remaining time is too short even for base passes; no work is done for it.
        """
        with self._lock:
            now = self._clock()
            likely = self._cost.seconds(rows)
            busy = self._had_to_wait(queued, likely, now) or self.waiting > 0
            remaining = deadline.left(now) - RESPONSE_LATENCY_S
            needed = self._cost.at_most(rows) if busy else likely
            if remaining < needed and (
                remaining <= 0
                or (
                    not self._cost.try_again(rows, remaining, needed, now)
                    if busy
                    else self._cost.too_little(rows, remaining, now)
                )
            ):
                raise too_late(remaining, needed)
            return not (self._shed and busy)

    def waiting_share(self) -> float:
        """Share of the last second's requests that were queued behind another; 0 if there were no requests."""
        with self._lock:
            self._forget(self._clock())
            return self._waited / len(self._recent) if self._recent else 0.0

    def finished(self, rows: int, seconds: float, extra_seconds: float) -> None:
        """Record the cost of a request. ``extra_seconds`` of it went into extra paths, which the next request may not use."""
        with self._lock:
            self._ended = self._clock()
            cost = max(seconds - extra_seconds, 0.0)
            self._cost.add(rows, cost, self._ended)
            self._usual_cost += (
                SMOOTHING * (min(cost, 10 * self._usual_cost) - self._usual_cost) if self._usual_cost > 0 else cost
            )

    def _had_to_wait(self, queued: float, likely: float, now: float) -> bool:
        """Whether the request was queued behind another for a significant time."""
        self._min_latency = min(self._min_latency + CLOCK_DRIFT_RATE * (now - self._updated), queued)
        self._updated = now
        # Count only time spent queued behind another request: a sleeping server that wakes up slowly has no queue.
        behind = queued - self._min_latency - (now - self._ended)
        waited = behind > max(WAITED * likely, MIN_QUEUE_WAIT_S)
        self._recent.append((now, waited))
        self._waited += waited
        self._forget(now)
        return waited

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - WINDOW:
            self._waited -= self._recent.popleft()[1]


def too_late(left: float, needed: float) -> OverloadedError:
    """The error for a request that has ``left`` seconds, not counting the response latency, and needs about ``needed``."""
    left_ms, needed_ms = (1000 * (seconds + RESPONSE_LATENCY_S) for seconds in (left, needed))
    if left <= 0:
        text = "no time is left before the deadline"
    else:
        text = f"{left_ms:.0f} ms are left before the deadline and the answer needs about {needed_ms:.0f}"
    return OverloadedError(
        # A deadline that has already passed says nothing about when to retry.
        f"{text}: try again later, or set a longer deadline",
        retry_after=max(needed - max(left, 0.0), 0.0),
        status=503,
    )
