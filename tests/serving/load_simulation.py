"""A discrete-event simulation of a server around the real :class:`serving.admission.Admission`, on a clock of its own.

What is simulated: callers that send at given moments, places to wait, workers that take the oldest waiting request, what a request
costs at that moment, and stalls in which the whole process stands still. What is real: every decision about a request.

:func:`ideal` is what the decisions are measured against: the same server, arrivals, places and order, and an admission that knows
how long every request will take. A request takes a place when it comes, if there is one; at its turn, which is its place in the
order of arrival, it is started if its answer will be there by its deadline, and dropped at no cost if not; what has started is
not interrupted.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.adapters.java_queue import JavaQueue
from serving.admission import RESPONSE_LATENCY_S, Admission
from serving.cost import FRESH
from serving.deadline import Deadline
from thinktwice.errors import OverloadedError

#: Share of its cost that a request takes although it is refused at its turn: before it is read, and when its rows are known.
UNREAD, READ = 0.005, 0.03

KINDS = ("free", "wake", "over", "come")  # events of one moment come in this order

End = Literal["answered", "refused"]


@dataclass(frozen=True)
class Arrival:
    """A request: when it is sent, its rows, its deadline in seconds from then, and what its cost is off the usual one."""

    at: float
    rows: int
    deadline: float
    noise: float = 1.0

    @property
    def ends(self) -> float:
        return self.at + self.deadline


@dataclass(frozen=True)
class World:
    """The machine.

    Attributes:
        fixed, per_row: seconds of a request of no rows, and of every row.
        scales: (from when, factor) on all costs, in order; 1 before.
        stalls: (from when, seconds) in which nothing happens, in order, not overlapping.
        workers: requests served at the same time.
        places: requests that may wait.
        prompt: whether a waiting request is told at once when its time is over (the KServe predictor), or at its turn (a worker
            of TorchServe, which does not see Java's queue).
        says: whether the time of sending is known (a start header, or the predictor's own queue), or estimated by
            :class:`serving.adapters.java_queue.JavaQueue` of one worker.
    """

    fixed: float = 0.001
    per_row: float = 1e-5
    scales: tuple[tuple[float, float], ...] = ()
    stalls: tuple[tuple[float, float], ...] = ()
    workers: int = 1
    places: int = 32
    prompt: bool = True
    says: bool = True

    def scale(self, at: float) -> float:
        place = bisect_right(self.scales, at, key=lambda change: change[0])
        return self.scales[place - 1][1] if place else 1.0

    def cost(self, at: float, rows: int) -> float:
        """Usual seconds of a request that starts then, without stalls."""
        return self.scale(at) * (self.fixed + self.per_row * rows)

    def awake(self, at: float) -> float:
        """The first moment from then on at which the process runs."""
        place = bisect_right(self.stalls, at, key=lambda stall: stall[0])
        if place and at < self.stalls[place - 1][0] + self.stalls[place - 1][1]:
            return sum(self.stalls[place - 1])
        return at

    def done(self, at: float, work: float) -> float:
        """When so many seconds of work are done that start then, stalls included."""
        end = self.awake(at) + work
        for begin, seconds in self.stalls[bisect_right(self.stalls, at, key=lambda stall: stall[0]) :]:
            if begin >= end:
                break
            end += seconds
        return end

    def curve(self, sizes: Sequence[int] = (1, 100, 1000)) -> list[tuple[int, float]]:
        """What a warm-up on the idle machine measures."""
        return [(rows, self.cost(0.0, rows)) for rows in sizes]


@dataclass
class Course:
    """How a request ended.

    Attributes:
        told: when the answer or the refusal left the server.
        idle: it was decided about at once, on a server that had nothing else to do.
        started: when work on it began; None if none did.
        stalled: the process stood still while it was at work on it or deciding about it.
    """

    arrival: Arrival
    end: End = "refused"
    told: float = 0.0
    idle: bool = False
    started: float | None = None
    stalled: bool = False

    @property
    def good(self) -> bool:
        return self.end == "answered" and self.told + RESPONSE_LATENCY_S <= self.arrival.ends

    @property
    def late(self) -> float:
        """How far beyond its deadline it left the server, as a share of the deadline."""
        return (self.told - self.arrival.ends) / self.arrival.deadline


class Clock:
    """Time of the simulation, which the admission reads."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Deciding:
    """What the simulation asks the real admission."""

    def __init__(self, world: World, curve: Sequence[tuple[int, float]], clock: Clock) -> None:
        self.admission = Admission(workers=world.workers, queue=world.places, clock=clock)
        self.admission.warmed_up(curve)
        self._world, self._clock = world, clock
        self._queue = JavaQueue(None, clock)
        self.enter, self.finished = self.admission.enter, self.admission.finished

    def leave(self) -> None:
        self.admission.leave()
        self._queue.answered()

    def start(self, arrival: Arrival, done: float) -> float | None:
        """None to start the request; else the seconds it takes to refuse it."""
        now = self._clock.now
        queued, sent = now - arrival.at, arrival.at
        if not self._world.says:
            wait = self._queue.came()
            queued, sent = wait.likely, now - wait.at_most
            self._queue.waited = now - arrival.at  # as the front end says when the next one comes
        deadline, cost = Deadline(sent, sent + arrival.deadline), self._world.cost(now, arrival.rows)
        try:
            self.admission.refuse_hopeless(deadline)
        except OverloadedError:
            return UNREAD * cost
        try:
            self.admission.admit(deadline, arrival.rows, queued)
        except OverloadedError:
            return READ * cost
        return None


class _Knowing:
    """The ideal: the same places, and it knows when a request would be done."""

    def __init__(self, world: World) -> None:
        self._places, self._inside = world.workers + world.places, 0

    def enter(self) -> None:
        if self._inside >= self._places:
            raise OverloadedError("full", retry_after=0.0, status=429)
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1

    def start(self, arrival: Arrival, done: float) -> float | None:
        return None if done + RESPONSE_LATENCY_S <= arrival.ends else 0.0

    def finished(self, rows: int, seconds: float, extra_seconds: float) -> None:
        """It has nothing to learn."""


def simulate(
    world: World, arrivals: Sequence[Arrival], curve: Sequence[tuple[int, float]] | None = None
) -> list[Course]:
    """The courses of all arrivals, in their order. ``curve`` is the warm-up's, by default a good one."""
    clock = Clock()
    return _run(world, arrivals, clock, _Deciding(world, world.curve() if curve is None else curve, clock))


def ideal(world: World, arrivals: Sequence[Arrival]) -> int:
    """Requests that an admission which knows all costs answers in time."""
    return sum(course.good for course in _run(world, arrivals, Clock(), _Knowing(world)))


def _run(world: World, arrivals: Sequence[Arrival], clock: Clock, admission: _Deciding | _Knowing) -> list[Course]:
    courses = [Course(arrival) for arrival in arrivals]
    waiting: dict[int, None] = {}  # oldest first
    free = world.workers
    order = 0
    events: list[tuple[float, int, int, str, int, float]] = []  # when, kind, order, what, request, seconds

    def push(at: float, what: str, request: int, seconds: float = 0.0) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (at, KINDS.index(what), order, what, request, seconds))

    def take_turns() -> None:
        nonlocal free
        while free and waiting:
            number = next(iter(waiting))
            del waiting[number]
            course, now = courses[number], clock.now
            work = world.cost(now, course.arrival.rows) * course.arrival.noise
            done = world.done(now, work)
            refusal = admission.start(course.arrival, done)
            if refusal is None:
                course.started, course.end, course.told = now, "answered", done
                course.stalled = done > now + work + 1e-12
                free -= 1
                push(done, "free", number, done - now)
            elif refusal > 0:
                done = world.done(now, refusal)
                course.told = done
                free -= 1
                push(done, "free", number, -1.0)
            else:
                course.told = now
                admission.leave()

    for number, arrival in enumerate(arrivals):
        push(arrival.at, "come", number)
    while events:
        at, _, _, what, number, seconds = heapq.heappop(events)
        alone = what == "come" and not world.prompt  # whoever keeps the queue then is another process
        if not alone and (wakes := world.awake(at)) > at:
            push(wakes, what, number, seconds)
            continue
        clock.now = at
        course = courses[number]
        if what == "come":
            try:
                admission.enter()
            except OverloadedError:
                course.told = clock.now
                continue
            course.idle = free == world.workers and not waiting and at == course.arrival.at == world.awake(at)
            waiting[number] = None
            if world.awake(at) == at:
                take_turns()
            else:
                push(world.awake(at), "wake", number)
            if world.prompt and number in waiting:
                push(max(course.arrival.ends - RESPONSE_LATENCY_S, clock.now), "over", number)
        elif what == "over":
            if number in waiting:
                del waiting[number]
                admission.leave()
                course.told = clock.now
        elif what == "wake":
            take_turns()
        else:
            free += 1
            admission.leave()
            if seconds >= 0:
                admission.finished(course.arrival.rows, seconds, 0.0)
            take_turns()
    return courses


def settled(world: World, at: float) -> bool:
    """Whether costs have not fallen for so long that what was measured before them proves nothing any more."""
    before = 1.0
    for when, factor in world.scales:
        if factor < before and when <= at < when + FRESH + 0.5:
            return False
        before = factor
    return True
