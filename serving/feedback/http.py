"""HTTP interface of the service: events, health and metrics.

``POST /v1/events`` accepts ``{"events": [...]}`` as ``application/json``, or one event per line as ``application/x-ndjson``. 202 means
that the events are on disk; invalid events were quarantined with the reason, and are listed in the response. 429 and 503 mean that no
event was accepted: send the same events again after ``Retry-After`` seconds. Events may be sent twice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving.feedback.quarantine import Quarantine
from serving.feedback.rules import EventRules
from serving.feedback.service import Feedback
from serving.protocol.errors import JSON, error_body
from thinktwice.errors import OverloadedError, ResourceError, reason
from thinktwice.files import parse_json
from thinktwice.records.events import Click, Impression

MAX_BODY = 4 << 20  # bytes
MAX_EVENTS = 10_000  # per request


def application(
    feedback: Feedback, rules: EventRules, quarantine: Quarantine, refused: Callable[[], str] = lambda: ""
) -> Starlette:
    """The HTTP application of one service.

    Args:
        refused: returns why the present champion gets no counters, "" if it does.
    """
    registry = CollectorRegistry()
    registry.register(_Metrics(feedback, quarantine, refused))

    async def events(request: Request) -> Response:
        body = await _body(request)
        valid, invalid = _read(body, request.headers.get("content-type", ""), rules)
        try:
            if invalid:
                await asyncio.to_thread(quarantine.add, [(why, value) for _, why, value in invalid])
            if valid:
                await asyncio.wrap_future(feedback.recorder.submit(valid))
        except OverloadedError as error:
            return _error(error.status, str(error), retry_after=error.retry_after)
        except ResourceError as error:
            return _error(503, str(error), retry_after=5.0)
        answer = {"accepted": len(valid), "quarantined": [{"index": n, "reason": why} for n, why, _ in invalid]}
        return Response(orjson.dumps(answer), 202 if valid or not invalid else 422, media_type=JSON)

    async def health(_: Request) -> Response:
        why = problems(feedback, refused())
        return Response(orjson.dumps({"ok": not why, "problems": why}), 200 if not why else 503, media_type=JSON)

    async def metrics(_: Request) -> Response:
        return Response(await asyncio.to_thread(generate_latest, registry), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/events", events, methods=["POST"]),
            Route("/healthz", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )


def problems(feedback: Feedback, refused: str = "") -> list[str]:
    """Problems that prevent accepting or pushing events, one sentence each."""
    out = [refused] if refused else []
    if not feedback.recorder.writable:
        out.append("the event log cannot be written")
    if feedback.follower.error:
        out.append(f"the log cannot be followed: {feedback.follower.error}")
    if feedback.follower.hangs:
        out.append("the online store does not answer")
    if feedback.follower.store_down:
        out.append(f"the online store does not take rows: {feedback.follower.to_push} wait")
    return out


async def _body(request: Request) -> bytes:
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        raise HTTPException(413, f"the body is too large, at most {MAX_BODY} bytes are accepted: send fewer events")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise HTTPException(
                    413, f"the body is too large, at most {MAX_BODY} bytes are accepted: send fewer events"
                )
    except ClientDisconnect:
        raise HTTPException(400, "the body is incomplete") from None
    return bytes(body)


def _read(body: bytes, kind: str, rules: EventRules) -> tuple[list[Impression | Click], list[tuple[int, str, object]]]:
    """The valid events of a body, and the invalid values as (index, reason, value)."""
    values: list[object] = []
    invalid: list[tuple[int, str, object]] = []
    if kind.split(";")[0].strip() == "application/x-ndjson":
        lines = [line for line in body.split(b"\n") if line.strip()]
        values = [_Line(line) for line in lines]
    else:
        try:
            document = parse_json(body)
        except ValueError as error:
            raise HTTPException(400, f"the body is not JSON ({reason(error)}): send {{'events': [...]}}") from None
        if not isinstance(document, dict) or set(document) != {"events"} or not isinstance(document["events"], list):
            raise HTTPException(
                400, "the body is not an object with the one key 'events', a list: send {'events': [...]}"
            )
        values = document["events"]
    if len(values) > MAX_EVENTS:
        raise HTTPException(413, f"{len(values)} events are too many, at most {MAX_EVENTS} are accepted: send fewer")
    valid: list[Impression | Click] = []
    for index, value in enumerate(values):
        try:
            valid.append(rules.event(parse_json(value.text) if isinstance(value, _Line) else value))
        except ValueError as error:
            raw = value.text.decode("utf-8", "replace") if isinstance(value, _Line) else value
            invalid.append((index, reason(error), raw))
    return valid, invalid


class _Line:
    """An unparsed line of JSON."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text


class _Metrics:
    """Collector of the Prometheus metrics, read from the service on each scrape."""

    def __init__(self, feedback: Feedback, quarantine: Quarantine, refused: Callable[[], str]) -> None:
        self._feedback, self._quarantine, self._refused = feedback, quarantine, refused

    def collect(self) -> Any:
        feedback, follower = self._feedback, self._feedback.follower
        outcomes = CounterMetricFamily(
            "thinktwice_feedback_events", "Events and outcomes by what became of them.", labels=["fate"]
        )
        for name, number in sorted(follower.counts().items()):
            outcomes.add_metric([name], number)
        yield outcomes
        received = CounterMetricFamily(
            "thinktwice_feedback_received", "Events by what was done when they came.", labels=["outcome"]
        )
        for name in ("accepted", "refused_queue", "refused_disk"):
            received.add_metric([name], feedback.recorder.counts[name])
        received.add_metric(["quarantined"], self._quarantine.number)
        yield received
        for name, text, number in (
            ("push_failures", "Writes that the online store did not take.", follower.push_failures),
            ("pushed_rows", "Rows written to the online store.", follower.pushed_rows),
            ("clock_jumps", "Jumps of the wall clock that were not followed.", feedback.clock.jumps),
        ):
            yield CounterMetricFamily(f"thinktwice_feedback_{name}", text, value=number)
        for name, text, value in (
            ("rows_to_push", "Rows that wait for the online store.", float(follower.to_push)),
            ("push_lag_seconds", "From the record of an event to the end of its push, of the last push.", follower.lag),
            (
                "watermark_seconds",
                "Instant before which all known outcomes are in the counters.",
                follower.watermark / 1e6,
            ),
            (
                "healthy",
                "1 while events are accepted and pushed, else 0.",
                float(not problems(feedback, self._refused())),
            ),
        ):
            yield GaugeMetricFamily(f"thinktwice_feedback_{name}", text, value=value)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, headers=error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    return _error(500, "the request failed")


def _error(status: int, text: str, *, retry_after: float = 0.0, headers: Any = None) -> Response:
    response_headers = dict(headers or {})
    if retry_after:
        response_headers["retry-after"] = str(math.ceil(retry_after))
    return Response(error_body(text, ""), status, response_headers, media_type=JSON)
