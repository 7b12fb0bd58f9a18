"""One request from bytes to bytes: limits, refusals, what goes to logs and traces, and what never does."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.config import ServingConfig, load_config
from serving.features.lookup import Features
from serving.sending_times import SendingTimes
from serving.service import Service
from serving.telemetry.tracing import open_tracing, trace_id_of
from tests.serving.conftest import Lines
from tests.serving.fakes import ITEMS, make_service
from thinktwice.errors import OverloadedError, ServerError

ONE = {"user_id": "u1", "candidates": ["i1", "i2"], "context": {"slot": "s1", "bid": 0.5, "timestamp": 0}}
BODY = json.dumps({"instances": [ONE]}).encode()
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def service(small: Path) -> Service:
    return make_service(small / "bundle", ServingConfig(arm="treatment"))


def test_the_answer_carries_its_id_and_where_the_time_went(service: Service) -> None:
    reply = service.answer(BODY, {"x-request-id": "abc"})
    assert reply.status == 200
    assert reply.headers["x-request-id"] == "abc"
    stages = dict(part.split(";dur=") for part in reply.headers["server-timing"].split(", "))
    assert list(stages) == ["queue", "parse", "features", "encode", "engine", "respond", "total"]
    parts = sum(float(v) for name, v in stages.items() if name != "total")
    assert 0 < parts <= float(stages["total"]) + 0.01


@pytest.mark.parametrize("given", ["", "x" * 200, "line\nbreak", "ümlaut"])
def test_a_request_id_that_cannot_be_a_header_is_replaced(service: Service, given: str) -> None:
    found = service.answer(BODY, {"x-request-id": given}).headers["x-request-id"]
    assert found != given and len(found) == 36


def test_a_body_that_is_too_large_is_refused(small: Path) -> None:
    service = make_service(small / "bundle", ServingConfig(max_body_bytes=1024))
    reply = service.answer(b" " * 1025, {})
    assert reply.status == 413
    assert "at most 1024" in json.loads(reply.body)["error"]
    assert service.answer(BODY, {}).status == 200


def test_time_in_the_queue_counts_against_the_deadline(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_sent", SendingTimes(lambda reason: None, lambda: 1_790_000_000.0))
    late = {"x-request-start": "t=1789999999.0", "x-deadline-ms": "900"}
    reply = service.answer(BODY, late, service.arrival(late))
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert "before the deadline" in json.loads(reply.body)["error"]
    soon = {"x-request-start": "t=1789999999.9", "x-deadline-ms": "60000"}
    assert service.answer(BODY, soon, service.arrival(soon)).status == 200


def test_the_deadline_of_one_request_of_a_body_counts_too(service: Service) -> None:
    body = {"instances": [ONE, {**ONE, "deadline_ms": 1e-6}]}
    assert service.answer(body, {}).status == 503


@pytest.mark.parametrize("text", ["0", "-5", "-1e3", "0.0", "1e-9"])
def test_who_has_no_time_left_is_refused_before_the_body_is_read(service: Service, text: str) -> None:
    reply = service.answer(b"{", {"x-deadline-ms": text})
    assert (reply.status, json.loads(reply.body)["field"]) == (503, "")
    assert json.loads(reply.body)["error"].startswith("no time is left before the deadline")
    assert int(reply.headers["retry-after"]) >= 1


@pytest.mark.parametrize("text", ["abc", "nan", "inf", ""])
def test_a_deadline_that_is_not_a_number_is_named(service: Service, text: str) -> None:
    reply = service.answer(BODY, {"x-deadline-ms": text})
    assert (reply.status, json.loads(reply.body)["field"]) == (400, "x-deadline-ms")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br", "GZIP", "x-gzip", "chunked"])
def test_compressed_bodies_are_refused_as_such(service: Service, coding: str) -> None:
    for body in (gzip.compress(BODY), BODY):
        reply = service.answer(body, {"content-encoding": coding})
        assert (reply.status, reply.headers["accept-encoding"]) == (415, "identity")
        answer = json.loads(reply.body)
        assert answer["field"] == "content-encoding" and f"compressed ({coding.lower()})" in answer["error"]


@pytest.mark.parametrize("coding", ["", "identity", " Identity "])
def test_bodies_that_are_as_they_are_may_say_so(service: Service, coding: str) -> None:
    assert service.answer(BODY, {"content-encoding": coding}).status == 200


def test_the_upper_bound_of_a_wait_counts_against_the_deadline_and_the_estimate_as_load(service: Service) -> None:
    """What the server in front kept is told by estimate where no header says when a request was sent."""
    arrival = service.arrival({"x-deadline-ms": "1000"}, waited=0.1, at_most=0.9)
    assert arrival.queued == 0.1
    assert arrival.deadline.left(arrival.at) == pytest.approx(0.1)
    assert service.answer(BODY, {"x-deadline-ms": "1000"}, arrival).status == 200
    over = service.arrival({"x-deadline-ms": "1000"}, waited=0.1, at_most=1.0)
    assert service.answer(BODY, {"x-deadline-ms": "1000"}, over).status == 503
    sent = {"x-deadline-ms": "1000", "x-request-start": f"t={time.time():.6f}"}
    known = service.arrival(sent, waited=0.1, at_most=1.0)
    assert known.queued < 0.05 and service.answer(BODY, sent, known).status == 200


def test_the_warm_up_measures_the_whole_way(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(small / "bundle")
    asked: list[int] = []
    read = service.scorer.reader.read  # type: ignore[union-attr]

    def counted(user_id: str | None, item_ids: list[str], timeout: float | None = None) -> Features:
        asked.append(len(item_ids))
        assert set(item_ids) <= set(ITEMS), "items that training saw"
        return read(user_id, item_ids, timeout)

    monkeypatch.setattr(service.scorer.reader, "read", counted)
    costs: list[tuple[int, float]] = []
    monkeypatch.setattr(service.admission, "warmed_up", costs.extend)
    service.warm_up()
    assert sorted(set(asked)) == [rows for rows, _ in costs] == [1, 100, 1000]
    assert all(seconds > 0 for _, seconds in costs)


def test_a_refusal_at_the_door_looks_like_any_other(service: Service) -> None:
    error = OverloadedError("40 requests wait already", retry_after=2.3, status=429)
    reply = service.refuse(error, {"x-request-id": "r"}, service.arrival({}))
    assert (reply.status, reply.headers["retry-after"], reply.headers["x-request-id"]) == (429, "3", "r")
    assert json.loads(reply.body) == {"error": "40 requests wait already", "field": ""}


def test_load_takes_extra_paths_and_says_so(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(small / "bundle")
    many = json.dumps({"instances": [{**ONE, "candidates": [f"i{i}" for i in range(60)]}]}).encode()
    usual = json.loads(service.answer(many, {}).body)["predictions"][0]
    assert max(item["num_paths"] for item in usual["items"]) > 1
    monkeypatch.setattr(service.admission, "admit", lambda *_: False)
    shed = json.loads(service.answer(many, {}).body)["predictions"][0]
    assert {item["num_paths"] for item in shed["items"]} == {1}
    assert shed["paths_capped"] and not usual["paths_capped"]


def test_logs_are_json_without_personal_data(service: Service, lines: Lines) -> None:
    service.answer(BODY, {"x-request-id": "abc", "traceparent": PARENT})
    service.answer(b'{"instances": [{"user_id": "u1", "secret": 1}]}', {})
    first, second = lines
    assert first["message"] == "request" and first["level"] == "info"
    known = {"time", "level", "logger", "message", "request_id", "trace_id", "arm", "model_version"}
    assert set(first) == set(second) == known | {"status", "outcome", "ms", "rows", "extra_rows"}
    assert (first["request_id"], first["trace_id"], first["arm"]) == ("abc", TRACE, "treatment")
    assert (first["status"], first["outcome"], first["rows"]) == (200, "ok", 2)
    assert (second["status"], second["outcome"], second["rows"]) == (400, "invalid", 0)
    assert not any(word in json.dumps([first, second]) for word in ("u1", "i1", "s1", "secret"))


def test_an_error_is_logged_with_its_place_and_answered_without(
    service: Service, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError(" ".join(("user", "u1", "of", "a", "caller")))

    monkeypatch.setattr(service.scorer.bundle.engine, "score", broken)
    reply = service.answer(BODY, {"x-request-id": "abc"})
    assert (reply.status, json.loads(reply.body)) == (500, {"error": "prediction failed", "field": ""})
    failed = next(line for line in lines if line["message"] == "prediction failed")
    assert (failed["request_id"], failed["exception"]) == ("abc", "RuntimeError")
    assert "in broken" in failed["places"] and "user u1" not in json.dumps([*lines])


def test_the_callers_trace_goes_on_through_stages(small: Path) -> None:
    exporter = InMemorySpanExporter()
    tracing = open_tracing("v1", "a", SimpleSpanProcessor(exporter))
    service = make_service(small / "bundle", tracing=tracing)
    service.answer(BODY, {"traceparent": PARENT})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"predict", "features", "engine"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    predict = spans["predict"]
    assert f"{predict.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert spans["features"].parent.span_id == spans["engine"].parent.span_id == predict.context.span_id
    assert predict.resource.attributes["service.version"] == "v1"
    assert "u1" not in json.dumps([dict(span.attributes or {}) for span in spans.values()])


@pytest.mark.parametrize("given", ["", "x", f"00-{'0' * 32}-1-01", f"00-{'g' * 32}-1-01", "00-abc-1-01"])
def test_a_malformed_trace_is_none(given: str) -> None:
    assert trace_id_of({"traceparent": given}) == ""


def test_settings_come_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THINKTWICE_SERVING", raising=False)
    assert load_config() == ServingConfig()
    file = tmp_path / "serving.yaml"
    file.write_text("arm: control\ndeadline_ms: 80\n")
    monkeypatch.setenv("THINKTWICE_SERVING", str(file))
    assert load_config() == ServingConfig(arm="control", deadline_ms=80)
    for text, words in (
        ("queue: -1", "wrong at queue"),
        ("quue: 1", "wrong at quue"),
        ("[1]", "contains a list instead of a mapping"),
        ("a: [", "not valid YAML at line 1"),
    ):
        file.write_text(text)
        with pytest.raises(ServerError, match=words):
            load_config()
    file.unlink()
    with pytest.raises(ServerError, match="cannot be read"):
        load_config()
