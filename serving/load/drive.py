"""Sends what the plan says and measures when answers come.

In the open loop callers do not wait for each other: a request is due at its moment, whatever became of those before it, and its
latency counts from that moment. A stall of one second therefore shows in every request that was due within it, not in one.
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
REPLAYED = 20  # requests that are asked once more at the end, one by one

#: What an answer says of itself when load, or a store that was late, took something from it; in v1 and in the text of v2.
REDUCED = re.compile(rb'paths_capped\\?":true|default_features\\?":\[\\?"')

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """Whom to ask, and how."""

    url: str
    requests: Sequence[dict[str, Any]]
    protocol: str = "v1"
    deadline: float | None = None  # seconds; sent along, and what counts as late
    most_open: int = 512  # requests under way; more are due but not sent


@dataclass
class Measured:
    """What a run gave: per request its latency in seconds (NaN without an answer) and how it ended."""

    seconds: float
    latency: np.ndarray
    outcomes: list[Outcome]
    refused_silently: int = 0  # refusals without Retry-After
    unequal: int = 0  # replayed requests with another answer
    first_wrong: str = ""

    def count(self, outcome: Outcome) -> int:
        return self.outcomes.count(outcome)

    @property
    def answered(self) -> np.ndarray:
        """Latencies of whole answers, late ones included."""
        kept = np.array([o in ("ok", "late") for o in self.outcomes], bool)
        return self.latency[kept]

    @property
    def throughput(self) -> float:
        """Whole answers a second."""
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
    """Send request i at ``moments[i]`` seconds from now; the requests of the target take turns."""
    return _run_loop(_open_loop(target, moments))


def closed_loop(target: Target, connections: int, seconds: float) -> Measured:
    """Callers that each send the next request when they have the answer to the last, for some time."""
    return _run_loop(_closed_loop(target, connections, seconds))


async def _open_loop(target: Target, moments: np.ndarray) -> Measured:
    run = _new_run(target)
    under_way: set[asyncio.Task[None]] = set()
    start = time.perf_counter()
    wall = time.time()
    for number, due in enumerate(moments.tolist()):
        if (wait := start + due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if len(under_way) >= target.most_open:
            run.outcomes[number] = "not sent"
            await asyncio.sleep(0)
            continue
        task = asyncio.create_task(_ask(run, number, start + due, wall + due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way)
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
    found = outcome(target.requests[position], reply, spent, target.deadline)
    run.outcomes[number] = found
    if found == "refused" and "retry-after" not in reply.headers:
        run.silent += 1
    elif found == "wrong" and not run.first_wrong:
        run.first_wrong = wrong(target.requests[position], reply.body)
    elif found == "ok" and len(run.kept) < REPLAYED:
        run.kept[position] = reply.body


async def _finished(run: _LoadRun, seconds: float, count: int) -> Measured:
    unequal = 0
    for position, body in run.kept.items():
        try:
            again = await asyncio.wait_for(run.client.post(run.bodies[position], {}), ANSWER_LIMIT)
        except (TimeoutError, BrokenConnectionError):
            continue
        if again.status == 200 and not REDUCED.search(body + again.body):
            unequal += again.body != body
    await run.client.close()
    latency = np.array([run.latency.get(number, np.nan) for number in range(count)])
    outcomes: list[Outcome] = [run.outcomes[number] for number in range(count)]
    return Measured(seconds, latency, outcomes, run.silent, unequal, run.first_wrong)


def _run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on a loop whose timers are finer than a millisecond, which those of epoll are not."""
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
