"""One HTTP request from bytes to bytes, whichever server carried it: decode, admit, score, encode, tell.

Both adapters hand over what they received and send what comes back. Whatever goes wrong with a request becomes a status and a
JSON body that says what to do and nothing about the inside; the details go to the log.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from serving import codec_v1, codec_v2, json_text, openapi
from serving.admission import Admission
from serving.config import ServingConfig
from serving.deadline import Deadline, header_deadline_ms, waited
from serving.logs import EXTRA
from serving.metrics import Metrics
from serving.outcome import Outcome
from serving.prediction_log import PredictionLog, Served
from serving.requests import Request
from serving.scorer import Answer, Scorer
from serving.tracing import Tracing
from serving.v2_tensors import HEADER, split
from thinktwice.errors import FeatureStoreError, OverloadedError, RequestError

JSON, BINARY = "application/json", "application/octet-stream"
FORMS = (
    "application/x-www-form-urlencoded",
    "multipart/form-data",
)  # TorchServe takes these apart before a handler sees them
REQUEST_ID = "x-request-id"
OWN_REQUEST_ID = "x-ctr-request-id"  # the same once more: TorchServe puts an id of its own into the other
MAX_REQUEST_ID = 128
PHRASES = {
    400: "Bad Request",
    413: "Content Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What goes back to the caller."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def phrase(self) -> str:
        return PHRASES.get(self.status, "OK")


@dataclass
class _Course:
    """What is known of a request so far."""

    request_id: str
    deadline: Deadline
    arrived: float  # monotonic
    trace_id: str = ""
    outcome: Outcome = "failed"
    answers: list[Answer] = field(default_factory=list)


class Service:
    """Answers requests with one scorer. Threads may share it.

    Args:
        scorer: warmed up.
        config: limits.
        metrics: where numbers go.
        admission: shared with whoever queues requests before they come here.
        tracing: where spans go.
        model_name: as it stands in the path, for v2 answers.
        log: takes answered requests; None logs no predictions.
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

    def arrival(self, headers: Mapping[str, str]) -> Deadline:
        """The deadline of a request that arrives now; ``headers`` have lower-case names."""
        sent = time.monotonic() - waited(headers)
        milliseconds = header_deadline_ms(headers) or self.config.deadline_ms
        return Deadline(sent, sent + milliseconds / 1000)

    def close(self) -> None:
        """Stop what runs in the background."""
        if self.scorer.reader is not None:
            self.scorer.reader.close()
        if self._log is not None:
            self._log.close()

    def answer(self, body: Any, headers: Mapping[str, str], deadline: Deadline | None = None) -> Reply:
        """Answer one HTTP request. Never raises.

        Args:
            body: bytes, or an object decoded already.
            headers: lower-case names.
            deadline: as :meth:`arrival` gave it when the request arrived; default now.
        """
        deadline = deadline or self.arrival(headers)
        course = _Course(_request_id(headers), deadline, time.monotonic())
        with self._tracing.request(headers, **{"thinktwice.request_id": course.request_id}) as course.trace_id:
            reply = self._guarded(body, headers, course)
        spent = time.monotonic() - course.deadline.sent
        self.metrics.finished(course.outcome, spent)
        if self.config.access_log:
            self._tell(course, reply, spent)
        reply.headers[REQUEST_ID] = reply.headers[OWN_REQUEST_ID] = course.request_id
        return reply

    def refuse(self, error: OverloadedError, headers: Mapping[str, str], deadline: Deadline) -> Reply:
        """The answer to a request that found no place in the queue."""
        course = _Course(_request_id(headers), deadline, time.monotonic(), trace_id="", outcome="refused")
        reply = _refused(error)
        spent = time.monotonic() - deadline.sent
        self.metrics.finished("refused", spent)
        if self.config.access_log:
            self._tell(course, reply, spent)
        reply.headers[REQUEST_ID] = reply.headers[OWN_REQUEST_ID] = course.request_id
        return reply

    def _guarded(self, body: Any, headers: Mapping[str, str], course: _Course) -> Reply:
        try:
            return self._answer(body, headers, course)
        except OverloadedError as error:
            course.outcome = "refused"
            return _refused(error)
        except RequestError as error:
            course.outcome = "invalid"
            return Reply(error.status, _error(str(error), error.field), {"content-type": JSON})
        except FeatureStoreError as error:
            logger.error("feature store: %s", error, extra={EXTRA: {"request_id": course.request_id}})
            body = _error("the feature store does not answer, try again later")
            return Reply(503, body, {"content-type": JSON, "retry-after": "1"})
        except Exception:
            logger.exception("prediction failed", extra={EXTRA: {"request_id": course.request_id}})
            return Reply(500, _error("prediction failed"), {"content-type": JSON})

    @cached_property
    def openapi(self) -> dict[str, Any]:
        """What this predictor accepts and answers."""
        manifest = self.scorer.bundle.manifest
        online = self.scorer.reader is not None
        return openapi.document(self.scorer.bundle.schema, self._model_name, manifest.model_version, online=online)

    def _answer(self, raw: Any, headers: Mapping[str, str], course: _Course) -> Reply:
        if openapi.MEDIA_TYPE in headers.get("accept", ""):
            course.outcome = "ok"
            return Reply(200, orjson.dumps(self.openapi), {"content-type": openapi.MEDIA_TYPE})
        queued = course.arrived - course.deadline.sent
        began = time.perf_counter()
        body, tail = self._decode(raw, headers)
        v2 = codec_v2.is_v2(body)
        if v2:
            version = self.scorer.bundle.manifest.model_version
            requests = codec_v2.requests(body, tail, self.scorer.parser, self._model_name, version)
            codec_v2.wanted_outputs(body)  # refuse before the work is done
        else:
            requests = self.scorer.parser.parse_all(codec_v1.instances(body, tail), "instances")
        parsed = time.perf_counter()
        own = [Deadline.of(request.deadline_ms, course.deadline) or course.deadline for request in requests]
        soonest = min(own, key=lambda deadline: deadline.ends)
        rows = sum(request.num_rows for request in requests)
        self.admission.admit(soonest, rows)
        answers = self.scorer.score(requests, course.deadline, extra_paths=self.admission.extra_paths(queued, rows))
        scored = time.perf_counter()
        encoded, tail = codec_v2.encode(answers, body, self._model_name) if v2 else (codec_v1.encode(answers), b"")
        text = orjson.dumps(encoded)
        reply = Reply(200, text + tail, {"content-type": BINARY if tail else JSON})
        if tail:
            reply.headers[HEADER] = str(len(text))
        course.outcome, course.answers = "ok", answers
        done = time.perf_counter()
        self.admission.finished(rows, done - began, _extra_seconds(answers))
        self.metrics.stage("queue", queued)
        self.metrics.stage("parse", parsed - began)
        self.metrics.stage("respond", done - scored)
        for request, answer in zip(requests, answers, strict=True):
            self.metrics.answered(answer)
            if self._log is not None:
                self._log.offer(self._served(course.request_id, request, answer))
        if self._log is not None:
            self.metrics.logged(self._log.counts)
        self.metrics.state(self.admission, self.scorer.reader)
        stages = {"queue": queued, "parse": parsed - began}
        for name in ("features", "encode", "engine"):
            stages[name] = sum(answer.stages.get(name, 0.0) for answer in answers)
        stages["respond"] = done - scored
        stages["total"] = queued + done - began
        reply.headers["server-timing"] = ", ".join(f"{n};dur={1000 * s:.3f}" for n, s in stages.items())
        return reply

    def _served(self, request_id: str, request: Request, answer: Answer) -> Served:
        shared, items = answer.logged
        return Served(
            request_id=request_id,
            at=time.time(),
            arm=self.config.arm,
            model_version=answer.model_version,
            bundle_hash=answer.bundle_hash,
            user_id=request.user_id,
            item_ids=answer.item_ids,
            shared=shared,
            items=items,
            probability=answer.probability,
            uncertainty=answer.uncertainty,
            num_paths=answer.num_paths,
            cold_user=answer.cold_user,
            cold_items=answer.cold_items,
            stale=answer.stale_user or any(answer.stale_items),
            defaulted=answer.default_features,
        )

    def _decode(self, raw: Any, headers: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
        tail = b""
        if raw is None or headers.get("content-type", "").lower().startswith(FORMS):
            raise RequestError("the request has no JSON body: send Content-Type application/json", field="body")
        if isinstance(raw, (bytes, bytearray, str)):
            if len(raw) > self.config.max_body_bytes:
                raise RequestError(
                    f"the body is too large, at most {self.config.max_body_bytes} bytes are accepted: send fewer rows",
                    field="body",
                    status=413,
                )
            if not isinstance(raw, str):
                raw, tail = split(bytes(raw), headers.get(HEADER))
            raw = json_text.loads(raw, "the body", "body")
        if not isinstance(raw, dict):
            raise RequestError("the body must be a JSON object", field="body")
        return raw, tail

    def _tell(self, course: _Course, reply: Reply, spent: float) -> None:
        fields = {
            "request_id": course.request_id,
            "trace_id": course.trace_id,
            "arm": self.config.arm,
            "model_version": self.scorer.bundle.manifest.model_version,
            "status": reply.status,
            "outcome": course.outcome,
            "ms": round(1000 * spent, 3),
            "rows": sum(len(answer.probability) for answer in course.answers),
            "extra_rows": sum(answer.path_rows for answer in course.answers),
        }
        logger.info("request", extra={EXTRA: fields})


def _extra_seconds(answers: list[Answer]) -> float:
    """Time of the engine that went into extra paths, by their share of all passes."""
    return sum(a.stages.get("engine", 0.0) * a.path_rows / max(a.path_rows + len(a.probability), 1) for a in answers)


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get(REQUEST_ID, "")
    return given if 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable() else str(uuid.uuid4())


def _refused(error: OverloadedError) -> Reply:
    headers = {"content-type": JSON, "retry-after": str(max(1, math.ceil(error.retry_after)))}
    return Reply(error.status, _error(str(error)), headers)


def _error(message: str, field: str = "") -> bytes:
    return orjson.dumps({"error": message, "field": field} if field else {"error": message})
