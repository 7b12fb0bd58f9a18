"""Request handling from bytes to bytes, independent of the server: decode, admit, score, encode, log.

Both adapters pass on what they receive and send what is returned. Every failure of a request becomes a status and a JSON body that
says what to do without exposing internals; the details are logged.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from serving.admission import Admission
from serving.config import ServingConfig
from serving.deadline import Deadline, header_deadline_ms
from serving.outcome import Outcome
from serving.protocol import codec_v2, json_text, openapi
from serving.protocol.codec_v1 import V1, V1Call
from serving.protocol.codec_v2 import V2, V2Call
from serving.protocol.errors import JSON, error_body
from serving.protocol.faults import Fault, json_path
from serving.protocol.requests import Request
from serving.protocol.v2_tensors import HEADER, split
from serving.scorer import Answer, NoFiniteScoreError, Scorer
from serving.sending_times import HEADER as START_HEADER
from serving.sending_times import SendingTimes
from serving.telemetry.exposures import ExposureHeaders
from serving.telemetry.logs import EXTRA
from serving.telemetry.metrics import Metrics
from serving.telemetry.prediction_log import PredictionLog, ServedRequest
from serving.telemetry.state import Trouble
from serving.telemetry.tracing import Tracing
from thinktwice.errors import FeatureStoreError, OverloadedError, RequestError
from thinktwice.experiment.gateway_config import SERVED_ARM
from thinktwice.records.exposure import NO_EXPOSURE, Exposure

BINARY = "application/octet-stream"
FORMS = (
    "application/x-www-form-urlencoded",
    "multipart/form-data",
)  # TorchServe parses these before a handler sees them
REQUEST_ID = "x-request-id"
OWN_REQUEST_ID = "x-ctr-request-id"  # a copy: TorchServe puts its own id into the other
MAX_REQUEST_ID = 128
WARM_UP_ROWS, WARM_UP_ROUNDS = (1, 100, 1000), 3
PHRASES = {
    400: "Bad Request",
    404: "Not Found",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HTTPResponse:
    """An HTTP response."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def phrase(self) -> str:
        return PHRASES.get(self.status, "OK")


@dataclass(frozen=True)
class Arrival:
    """Arrival of a request.

    Attributes:
        deadline: from its headers or the settings.
        at: arrival time on the monotonic clock.
        queued: seconds since it was sent, as far as known.
        problem: the error in these headers, if any.
    """

    deadline: Deadline
    at: float
    queued: float = 0.0
    problem: RequestError | None = None


@dataclass
class _RequestContext:
    """State of an HTTP request in progress."""

    request_id: str
    arrival: Arrival
    arrived: float  # monotonic
    trace_id: str = ""
    outcome: Outcome = "failed"
    answers: list[Answer] = field(default_factory=list)


class Service:
    """Answers requests with one scorer. Thread-safe.

    Args:
        scorer: warmed up.
        config: limits.
        metrics: receives measurements.
        admission: shared with the component that queues requests.
        tracing: receives spans.
        model_name: the name of the model in the URL path, for v2 answers.
        log: receives answered requests; None logs no predictions.
    """

    def __init__(
        self,
        scorer: Scorer,
        config: ServingConfig,
        metrics: Metrics,
        admission: Admission,
        tracing: Tracing,
        *,
        model_name: str,
        log: PredictionLog | None = None,
    ) -> None:
        self.scorer, self.config, self.metrics, self.admission = scorer, config, metrics, admission
        self._tracing, self._model_name, self._log = tracing, model_name, log
        self._v1 = V1(scorer.parser)
        self._anonymous = scorer.bundle.schema.has_anonymous_users
        self._v2 = V2(scorer.parser, model_name, scorer.bundle.manifest.model_version, scorer.answer)
        self._sent = SendingTimes(metrics.start_ignored)
        self._exposures = ExposureHeaders(config.prediction_log.user_ids, metrics.header_ignored)
        self._too_large = Trouble(
            logger, "stored features fit the model again, after {seconds} s and {times} answers without them"
        )

    def arrival(
        self, headers: Mapping[str, str], *, idle: bool | None = None, waited: float = 0.0, at_most: float = 0.0
    ) -> Arrival:
        """The arrival of a request, now, with the timing given by its headers.

        Args:
            headers: lower-case names.
            idle: whether the server was idle; default: as reported by the admission.
            waited: estimated seconds in the queue of the front-end server; used to detect load if the sending time is unknown.
            at_most: upper bound of ``waited``; counts against the deadline if the sending time is unknown.
        """
        now = time.monotonic()
        problem = None
        if START_HEADER in headers:
            waited = at_most = self._sent.waited(headers, idle=self.admission.idle if idle is None else idle)
        try:
            milliseconds = header_deadline_ms(headers)
        except RequestError as error:
            milliseconds, problem = None, error
        sent = now - at_most
        limit = self.config.deadline_ms if milliseconds is None else milliseconds
        return Arrival(Deadline(sent, sent + limit / 1000), now, waited, problem)

    def warm_up(self) -> None:
        """Answer synthetic requests of several sizes end to end, and pass their costs to the admission."""
        costs = []
        for rows in WARM_UP_ROWS:
            raw = orjson.dumps({"instances": [self.scorer.sample(rows)]})
            best = math.inf
            for _ in range(WARM_UP_ROUNDS):
                start = time.perf_counter()
                call = self._read(raw, {})
                _encode(call, self.scorer.score(call.requests, extra_paths=False))
                best = min(best, time.perf_counter() - start)
            costs.append((rows, best))
        self.admission.warmed_up(costs)

    def close(self) -> None:
        """Stop background work."""
        if self.scorer.reader is not None:
            self.scorer.reader.close()
        if self._log is not None:
            self._log.close()

    def answer(self, body: Any, headers: Mapping[str, str], arrival: Arrival | None = None) -> HTTPResponse:
        """Answer one HTTP request. Never raises.

        Args:
            body: bytes, or a decoded object.
            headers: lower-case names.
            arrival: result of :meth:`arrival` when the request arrived; default: now.
        """
        context = _RequestContext(_request_id(headers), arrival or self.arrival(headers), time.monotonic())
        with self._tracing.request(headers, **{"thinktwice.request_id": context.request_id}) as context.trace_id:
            reply = self._answer_or_error(body, headers, context)
        return self._finish(context, reply)

    def refuse(
        self, error: OverloadedError | RequestError, headers: Mapping[str, str], arrival: Arrival
    ) -> HTTPResponse:
        """The response to a request that is not processed: the queue was full, its deadline passed while it was queued, or it
        cannot be read."""
        context = _RequestContext(_request_id(headers), arrival, time.monotonic())
        return self._finish(context, self._refused(error, context))

    def _finish(self, context: _RequestContext, reply: HTTPResponse) -> HTTPResponse:
        spent = context.arrival.queued + time.monotonic() - context.arrival.at
        self.metrics.finished(context.outcome, spent)
        if self.config.access_log:
            self._access_log(context, reply, spent)
        reply.headers[REQUEST_ID] = reply.headers[OWN_REQUEST_ID] = context.request_id
        if self.config.arm:
            reply.headers[SERVED_ARM] = self.config.arm
        return reply

    def _answer_or_error(self, body: Any, headers: Mapping[str, str], context: _RequestContext) -> HTTPResponse:
        try:
            return self._answer(body, headers, context)
        except (OverloadedError, RequestError) as error:
            return self._refused(error, context)
        except FeatureStoreError as error:
            logger.error("feature store: %s", error, extra={EXTRA: {"request_id": context.request_id}})
            body = error_body("the feature store does not answer, try again later")
            return HTTPResponse(503, body, {"content-type": JSON, "retry-after": "1"})
        except Exception as error:  # noqa: BLE001 (the caller gets a response in any case)
            # The message of an exception may contain a caller's value: log only the traceback.
            fields = {"request_id": context.request_id, "exception": type(error).__name__}
            fields["places"] = "".join(traceback.format_tb(error.__traceback__))
            logger.error("prediction failed", extra={EXTRA: fields})
            return HTTPResponse(500, error_body("prediction failed"), {"content-type": JSON})

    def _refused(self, error: OverloadedError | RequestError, context: _RequestContext) -> HTTPResponse:
        if isinstance(error, OverloadedError):
            context.outcome = "refused"
            headers = {"content-type": JSON, "retry-after": str(max(1, math.ceil(error.retry_after)))}
            return HTTPResponse(error.status, error_body(str(error)), headers)
        context.outcome = "invalid"
        headers = {"content-type": JSON}
        if error.status == 415:
            headers["accept-encoding"] = "identity"
        return HTTPResponse(error.status, error_body(str(error), error.field), headers)

    @cached_property
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of this predictor."""
        manifest = self.scorer.bundle.manifest
        online = self.scorer.reader is not None
        return openapi.document(
            self.scorer.bundle.schema,
            self._model_name,
            manifest.model_version,
            online=online,
            answer=self.scorer.answer,
        )

    def _answer(self, raw: Any, headers: Mapping[str, str], context: _RequestContext) -> HTTPResponse:
        if openapi.MEDIA_TYPE in headers.get("accept", ""):
            context.outcome = "ok"
            return HTTPResponse(200, orjson.dumps(self.openapi), {"content-type": openapi.MEDIA_TYPE})
        arrival = context.arrival
        if arrival.problem is not None:
            raise arrival.problem
        self.admission.refuse_hopeless(arrival.deadline)
        queued = arrival.queued + context.arrived - arrival.at
        start = time.perf_counter()
        call = self._read(raw, headers)
        parsed = time.perf_counter()
        soonest, rows = arrival.deadline, 0
        for request in call.requests:
            rows += request.num_rows
            own = Deadline.of(request.deadline_ms, arrival.deadline)
            soonest = own if own is not None and own.ends < soonest.ends else soonest
        extra_paths = self.admission.admit(soonest, rows, queued)
        try:
            answers = self.scorer.score(call.requests, arrival.deadline, extra_paths=extra_paths)
        except NoFiniteScoreError as error:
            return self._no_score(error, call, context)
        scored = time.perf_counter()
        reply = _encode(call, answers)
        context.outcome, context.answers = "ok", answers
        end = time.perf_counter()
        self.metrics.stage("queue", queued)
        self.metrics.stage("parse", parsed - start)
        self.metrics.stage("respond", end - scored)
        exposure, place = NO_EXPOSURE if self._log is None else self._exposures.exposure(headers), 0
        for request, answer in zip(call.requests, answers, strict=True):
            self.metrics.answered(answer)
            if self._anonymous and request.user_id is None and request.rows is None:
                self.metrics.anonymous()
            self._check_stored_features(answer)
            if self._log is not None:
                self._log.offer(self._served(context.request_id, request, answer, exposure, place))
            place += request.num_rows
        if self._log is not None:
            self.metrics.logged(self._log.counts)
        self.metrics.state(self.admission, self.scorer.reader, self._sent.offset)
        stages = {"queue": queued, "parse": parsed - start}
        for answer in answers:
            for name, seconds in answer.stages.items():
                stages[name] = stages.get(name, 0.0) + seconds
        stages["respond"] = end - scored
        stages["total"] = queued + end - start
        reply.headers["server-timing"] = ", ".join(f"{n};dur={1000 * s:.3f}" for n, s in stages.items())
        self.admission.finished(rows, time.perf_counter() - start, _extra_seconds(answers))
        return reply

    def _read(self, raw: Any, headers: Mapping[str, str]) -> V1Call | V2Call:
        body, tail = self._decode(raw, headers)
        return (self._v2 if codec_v2.is_v2(body) else self._v1).read(body, tail)

    def _no_score(self, error: NoFiniteScoreError, call: V1Call | V2Call, context: _RequestContext) -> HTTPResponse:
        """Raw rows with too large values are a caller error; a row without a score even without features is a model error."""
        raw_rows = call.requests[error.request].rows is not None
        path = call.field(error.request, "rows" if raw_rows else "candidates", error.row)
        if raw_rows:
            raise RequestError(
                f"{path} has no finite score: its numbers are too large for the model, send smaller ones", field=path
            )
        text = f"{path} has no finite score, not even without its features: the model is broken, serve another version"
        logger.error("%s", text, extra={EXTRA: {"request_id": context.request_id}})
        return HTTPResponse(500, error_body(text, path), {"content-type": JSON})

    def _check_stored_features(self, answer: Answer) -> None:
        """Report stored features that are too large for the model."""
        for side in answer.unusable:
            self.metrics.defaulted(side, "unusable")
        if answer.unusable:
            sides = " and ".join(answer.unusable)
            self._too_large.met(
                f"stored {sides} features are too large for the model and count as missing: materialize the features again"
            )
        elif answer.item_ids is not None:
            self._too_large.not_met()

    def _served(self, request_id: str, request: Request, answer: Answer, seen: Exposure, place: int) -> ServedRequest:
        shared, items = answer.logged
        at, arm, user_id = time.time(), self.config.arm, request.user_id
        return ServedRequest(request_id, at, arm, user_id, shared, items, answer, seen, place, answer.instant)

    def _decode(self, raw: Any, headers: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
        tail = b""
        coding = headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise RequestError(
                f"the body is compressed ({coding[:40]}), which is not accepted: send it as it is, without Content-Encoding",
                field="content-encoding",
                status=415,
            )
        if raw is None or headers.get("content-type", "").lower().startswith(FORMS):
            raise RequestError("the request has no JSON body: send Content-Type application/json", field="body")
        if isinstance(raw, (bytes, bytearray, str)):
            if len(raw) > self.config.max_body_bytes:
                raise too_large(self.config.max_body_bytes)
            if not isinstance(raw, str):
                raw, tail = split(bytes(raw), headers.get(HEADER))
            try:
                raw = json_text.loads(raw)
            except Fault as fault:
                raise fault.error(json_path()) from None
        if not isinstance(raw, dict):
            raise RequestError("body must be a JSON object", field="body")
        return raw, tail

    def _access_log(self, context: _RequestContext, reply: HTTPResponse, spent: float) -> None:
        fields = {
            "request_id": context.request_id,
            "trace_id": context.trace_id,
            "arm": self.config.arm,
            "model_version": self.scorer.bundle.manifest.model_version,
            "status": reply.status,
            "outcome": context.outcome,
            "ms": round(1000 * spent, 3),
            "rows": sum(len(answer.probability) for answer in context.answers),
            "extra_rows": sum(answer.path_rows for answer in context.answers),
        }
        logger.info("request", extra={EXTRA: fields})


def _encode(call: V1Call | V2Call, answers: list[Answer]) -> HTTPResponse:
    text, tail = call.encode(answers)
    if not tail:
        return HTTPResponse(200, text, {"content-type": JSON})
    return HTTPResponse(200, text + tail, {"content-type": BINARY, HEADER: str(len(text))})


def _extra_seconds(answers: list[Answer]) -> float:
    """Engine time spent on extra paths, by their share of all passes."""
    return sum(a.stages.get("engine", 0.0) * a.path_rows / max(a.path_rows + len(a.probability), 1) for a in answers)


def _request_id(headers: Mapping[str, str]) -> str:
    request_id = headers.get(REQUEST_ID, "")
    return (
        request_id
        if 0 < len(request_id) <= MAX_REQUEST_ID and request_id.isascii() and request_id.isprintable()
        else str(uuid.uuid4())
    )


def too_large(most: int) -> RequestError:
    """The error for a body of more than ``most`` bytes."""
    return RequestError(
        f"the body is too large, at most {most} bytes are accepted: send fewer rows", field="body", status=413
    )
