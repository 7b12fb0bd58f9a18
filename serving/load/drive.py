"""Load generator: sends planned requests and measures response times.

In the open loop callers do not wait for each other: a request is due at its scheduled time, independent of earlier requests, and its
latency counts from that time. A stall of one second therefore shows in every request that was due during it, not in one.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from serving.load.check import OUTCOMES, Outcome, outcome, wrong
from serving.load.client import Address, BrokenConnectionError, Client
from serving.load.plan import body_of

PATHS = {"v1": "/v1/models/ctr:predict", "v2": "/v2/models/ctr/infer"}
ANSWER_LIMIT = 30.0  # seconds after which a request counts as lost
REPLAYED = 20  # requests that are sent again at the end, one by one

#: Marks in a response that was reduced because of load or a store timeout; in v1 and in the text of v2.
REDUCED = re.compile(rb'paths_capped\\?":true|default_features\\?":\[\\?"')

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """Target of a run: server, requests and limits."""

    url: str
    requests: Sequence[dict[str, Any]]
    protocol: str = "v1"
    deadline: float | None = None  # seconds; sent with each request, later responses count as late
    most_open: int = 512  # concurrent requests; further ones are not sent


@dataclass
class Measured:
    """Results of a run: latency in seconds (NaN without a response) and outcome per request."""

    seconds: float
    latency: np.ndarray
    outcomes: list[Outcome]
    refused_silently: int = 0  # refusals without Retry-After
    unequal: int = 0  # replayed requests with a different response
    first_wrong: str = ""

    def count(self, outcome: Outcome) -> int:
        return self.outcomes.count(outcome)

    @property
    def answered(self) -> np.ndarray:
        """Latencies of valid responses, including late ones."""
        complete = np.array([o in ("ok", "late") for o in self.outcomes], bool)
        return self.latency[complete]

    @property
    def throughput(self) -> float:
        """Valid responses per second."""
        return len(self.answered) / self.seconds if self.seconds else 0.0

    def counts(self) -> dict[Outcome, int]:
        return {name: self.count(name) for name in OUTCOMES}


@dataclass
class _LoadRun:
    target: Target
    client: Client
    bodies: list[bytes]
    latency: dict[int, float] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    kept: dict[int, bytes] = field(default_factory=dict)
    silent: int = 0
    first_wrong: str = ""


def open_loop(target: Target, moments: np.ndarray) -> Measured:
    """Send request i at ``moments[i]`` seconds from now, cycling through the requests of the target."""
    return _run_loop(_open_loop(target, moments))


def closed_loop(target: Target, connections: int, seconds: float) -> Measured:
    """Run callers for ``seconds``, each sending its next request when it has the response to the previous one."""
    return _run_loop(_closed_loop(target, connections, seconds))


async def _open_loop(target: Target, moments: np.ndarray) -> Measured:
    run = _new_run(target)
    in_flight: set[asyncio.Task[None]] = set()
    start = time.perf_counter()
    wall = time.time()
    for index, offset in enumerate(moments.tolist()):
        if (wait := start + offset - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if len(in_flight) >= target.most_open:
            run.outcomes[index] = "not sent"
            await asyncio.sleep(0)
            continue
        task = asyncio.create_task(_ask(run, index, start + offset, wall + offset))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
    if in_flight:
        await asyncio.wait(in_flight)
    return await _finished(run, time.perf_counter() - start, len(moments))


async def _closed_loop(target: Target, connections: int, seconds: float) -> Measured:
    run = _new_run(target)
    start = time.perf_counter()
    numbers = iter(range(1 << 60))

    async def caller() -> None:
        while (now := time.perf_counter()) < start + seconds:
            await _ask(run, next(numbers), now, time.time())

    await asyncio.gather(*(caller() for _ in range(connections)))
    spent = time.perf_counter() - start
    return await _finished(run, spent, len(run.outcomes))


def _new_run(target: Target) -> _LoadRun:
    bodies = [body_of(request, target.protocol) for request in target.requests]
    return _LoadRun(target, Client(Address.of(target.url, PATHS[target.protocol])), bodies)


async def _ask(run: _LoadRun, number: int, due: float, wall: float) -> None:
    target, position = run.target, number % len(run.bodies)
    headers = {"X-Request-Start": f"t={wall:.6f}", "X-Request-Id": f"load-{number}"}
    if target.deadline is not None:
        headers["X-Deadline-Ms"] = f"{target.deadline * 1000:g}"
    try:
        reply = await asyncio.wait_for(run.client.post(run.bodies[position], headers), ANSWER_LIMIT)
    except (TimeoutError, BrokenConnectionError):
        run.outcomes[number] = "lost"
        return
    run.latency[number] = spent = time.perf_counter() - due
    result = outcome(target.requests[position], reply, spent, target.deadline)
    run.outcomes[number] = result
    if result == "refused" and "retry-after" not in reply.headers:
        run.silent += 1
    elif result == "wrong" and not run.first_wrong:
        run.first_wrong = wrong(target.requests[position], reply.body)
    elif result == "ok" and len(run.kept) < REPLAYED:
        run.kept[position] = reply.body


async def _finished(run: _LoadRun, seconds: float, count: int) -> Measured:
    unequal = 0
    for position, body in run.kept.items():
        try:
            second_reply = await asyncio.wait_for(run.client.post(run.bodies[position], {}), ANSWER_LIMIT)
        except (TimeoutError, BrokenConnectionError):
            continue
        if second_reply.status == 200 and not REDUCED.search(body + second_reply.body):
            unequal += second_reply.body != body
    await run.client.close()
    latency = np.array([run.latency.get(number, np.nan) for number in range(count)])
    outcomes: list[Outcome] = [run.outcomes[number] for number in range(count)]
    return Measured(seconds, latency, outcomes, run.silent, unequal, run.first_wrong)


def _run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on an event loop with sub-millisecond timers, which epoll does not have."""
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
