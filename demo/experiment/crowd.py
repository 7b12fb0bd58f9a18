"""Simulated users: they send requests through the gateway, look at the best items, and click by their true probabilities."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from thinktwice.client import Client
from thinktwice.data.simulator.traffic import Traffic, Visit
from thinktwice.errors import ThinktwiceError
from thinktwice.experiment.gateway_config import ARM, ENROLLED, EXPERIMENT, HOST_HEADER
from thinktwice.records.events import Click, Impression

DEADLINE_MS = 2000.0
CATCH_UP = 0.5  # seconds of missed visits that are made up for
SEND_EVERY = 0.25  # seconds between two batches of events
MOST_EVENTS = 5000  # in one batch


@dataclass(frozen=True)
class CrowdPlan:
    """What users do.

    Attributes:
        rate: visits per second, if the servers keep up.
        quiet_rate: visits per second while no experiment runs: the machine then has time to start servers.
        shown: best items that a user sees of each answer.
        click_delay: seconds until a click, exponential, cut at ``click_within``.
        threads: connections.
        compare_every: every such visit is also answered by each arm directly, to measure the true effect.
    """

    rate: float = 80.0
    quiet_rate: float = 10.0
    shown: int = 3
    click_delay: float = 0.4
    click_within: float = 2.0
    threads: int = 4
    compare_every: int = 20


@dataclass(frozen=True)
class TrueEffect:
    """The true effect of the treatment: clicks expected per candidate by the true probabilities, over visits that both arms answered.

    It uses no click, no assignment and no log.
    """

    visits: int
    control: float
    difference: float
    se: float

    @property
    def relative(self) -> float | None:
        return self.difference / self.control if self.control else None

    @property
    def relative_se(self) -> float | None:
        return self.se / self.control if self.control else None


class Crowd:
    """Users in background threads while the block runs.

    Args:
        url: of the gateway.
        events: address that takes events (``.../v1/events``).
        first: number of the first visit.
    """

    def __init__(self, traffic: Traffic, plan: CrowdPlan, url: str, events: str, first: int = 0) -> None:
        self._plan, self._url, self._events_url = plan, url, events
        self._visits: Iterator[Visit] = traffic.visits(first)
        self._lock, self._end = threading.Lock(), threading.Event()
        self._sent, self._start, self._due = 0, time.monotonic(), 0.0
        self._rate = min(plan.quiet_rate, plan.rate)
        self._busy: tuple[int, float] = (0, 0.0)  # visits and seconds of all busy times that have ended
        self._since: tuple[int, float] | None = None  # visits and time at the start of the present one
        self._queue: list[tuple[float, Impression | Click]] = []
        self._pairs: list[tuple[float, float]] = []
        self._arms: tuple[int, int] | None = None
        self.first = first
        self.requests = self.failed = self.shown = self.clicks = 0
        self.last_error = ""
        self._threads = [threading.Thread(target=self._users, daemon=True) for _ in range(plan.threads)]
        self._threads.append(threading.Thread(target=self._send, daemon=True))

    def __enter__(self) -> Crowd:
        self._start = self._due = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(10)

    @property
    def next_visit(self) -> int:
        return self.first + self._sent

    @property
    def rate(self) -> float:
        """Visits per second so far."""
        return self.requests / max(time.monotonic() - self._start, 1e-9)

    @property
    def busy_rate(self) -> float:
        """Visits per second while the crowd was busy, at least 1."""
        with self._lock:
            requests, seconds = self._busy
            if self._since is not None:
                requests, seconds = (
                    requests + self.requests - self._since[0],
                    seconds + time.monotonic() - self._since[1],
                )
        return max(1.0, requests / seconds) if seconds else 1.0

    def be_busy(self) -> None:
        """Visit at the full rate from now on."""
        with self._lock:
            self._rate = self._plan.rate
            self._since = self._since or (self.requests, time.monotonic())

    def be_quiet(self) -> None:
        """Visit at the low rate from now on."""
        with self._lock:
            self._rate = min(self._plan.quiet_rate, self._plan.rate)
            if self._since is not None:
                requests, seconds = self._busy
                self._busy = (requests + self.requests - self._since[0], seconds + time.monotonic() - self._since[1])
            self._since = None

    def compare(self, control_port: int, treatment_port: int) -> None:
        """Measure the true effect from now on between the servers at these ports."""
        with self._lock:
            self._arms, self._pairs = (control_port, treatment_port), []

    def compare_nothing(self) -> None:
        with self._lock:
            self._arms = None

    def true_effect(self) -> TrueEffect | None:
        with self._lock:
            pairs = np.array(self._pairs)
        if len(pairs) < 2:
            return None
        differences = pairs[:, 1] - pairs[:, 0]
        se = float(differences.std(ddof=1) / math.sqrt(len(pairs)))
        return TrueEffect(len(pairs), float(pairs[:, 0].mean()), float(differences.mean()), se)

    def _users(self) -> None:
        with Client(self._url) as client:
            while not self._end.is_set():
                with self._lock:
                    visit = next(self._visits)
                    # Visits that were missed while the servers were slow are not made up for.
                    due = self._due = max(self._due + 1 / self._rate, time.monotonic() - CATCH_UP)
                    self._sent += 1
                if self._end.wait(max(0.0, due - time.monotonic())):
                    return
                self._visit(client, visit)

    def _visit(self, client: Client, visit: Visit) -> None:
        request: dict[str, object] = {
            "user_id": visit.user,
            "candidates": list(visit.candidates),
            "context": visit.context,
        }
        request_id = f"visit-{visit.number:08d}-{time.time_ns():x}"
        try:
            reply = client.predict(request, unit=visit.user, request_id=request_id, deadline_ms=DEADLINE_MS)
        except ThinktwiceError as error:
            with self._lock:
                self.requests, self.failed, self.last_error = self.requests + 1, self.failed + 1, str(error)
            return
        now = time.time()
        places = _best(reply.predictions[0]["items"], visit, self._plan.shown)
        delays = np.random.default_rng(visit.number).exponential(self._plan.click_delay, len(places))
        events: list[tuple[float, Impression | Click]] = []
        for place, delay in zip(places, delays, strict=True):
            item = visit.candidates[place]
            shown = Impression(
                request_id=request_id, item_id=item, at=now, user_id=visit.user, values=dict(visit.values[place])
            )
            events.append((now, shown))
            if visit.draw[place] < visit.truth[place]:
                at = now + min(float(delay), self._plan.click_within)
                events.append((at, Click(request_id=request_id, item_id=item, at=at)))
        with self._lock:
            self._queue += events
            self.requests += 1
            self.shown += len(places)
            self.clicks += len(events) - len(places)
            arms = self._arms if visit.number % self._plan.compare_every == 0 else None
        if arms is not None:
            self._compare(arms, request, visit)

    def _compare(self, arms: tuple[int, int], request: dict[str, object], visit: Visit) -> None:
        """Ask both servers for a copy of the request, as a gateway's shadow mode does, and compare the truth of what they show."""
        expected = []
        for port in arms:
            try:
                items = _ask_copy(port, request)
            except (OSError, ValueError, KeyError, http.client.HTTPException):
                return
            places = _best(items, visit, self._plan.shown)
            expected.append(sum(visit.truth[p] for p in places) / len(visit.candidates))
        with self._lock:
            if self._arms == arms:
                self._pairs.append((expected[0], expected[1]))

    def _send(self) -> None:
        while not self._end.wait(SEND_EVERY):
            self._send_due()
        self._send_due()

    def _send_due(self) -> None:
        now = time.time()
        with self._lock:
            due = [event for at, event in self._queue if at <= now][:MOST_EVENTS]
            chosen = {id(event) for event in due}
            self._queue = [entry for entry in self._queue if id(entry[1]) not in chosen]
        if due and not self._post(due):
            with self._lock:
                self._queue = [(event.at, event) for event in due] + self._queue

    def _post(self, events: list[Impression | Click]) -> bool:
        body = json.dumps({"events": [event.model_dump(exclude_none=True) for event in events]}).encode()
        request = urllib.request.Request(self._events_url, body, {"Content-Type": "application/json"})  # noqa: S310 (our own address)
        with suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return bool(answer.status == 202)
        return False


def _best(items: list[dict[str, object]], visit: Visit, shown: int) -> list[int]:
    """Positions of the best items of an answer among the candidates, best first."""
    where = {item: place for place, item in enumerate(visit.candidates)}
    ordered = sorted(items, key=lambda entry: -float(str(entry["probability"])))
    return [where[str(entry["item_id"])] for entry in ordered[:shown]]


def _ask_copy(port: int, request: dict[str, object]) -> list[dict[str, object]]:
    headers = {
        "content-type": "application/json",
        "host": "comparison-shadow",  # marks a copy in the prediction log
        HOST_HEADER: "comparison",
        EXPERIMENT: "none",
        ARM: "control",
        ENROLLED: "0",
        "x-deadline-ms": str(DEADLINE_MS),
    }
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_MS / 1000 + 1)) as connection:
        connection.request("POST", "/v1/models/ctr:predict", json.dumps({"instances": [request]}).encode(), headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        items: list[dict[str, object]] = json.loads(content)["predictions"][0]["items"]
        return items
