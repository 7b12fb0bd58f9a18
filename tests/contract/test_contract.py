"""Whatever TorchServe answers, the KServe predictor answers too: same status, same bytes, same headers of ours."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.protocol.v2_tensors import pack
from tests.contract.conftest import LARGEST, Servers
from tests.serving.small import MODEL_VERSION
from tests.serving.test_v2_tensors import BY_CANDIDATE, BY_FIELD, from_sdk, kserve

__all__ = ["kserve"]

pytestmark = pytest.mark.server

V1 = "/v1/models/ctr:predict"
V2 = "/v2/models/ctr/infer"
CONTEXT = {"slot": "s1", "bid": 0.5, "timestamp": "2026-01-06T10:00:00Z"}
ONE: dict[str, Any] = {"user_id": "u1", "candidates": ["i1", "i2", "never seen"], "context": CONTEXT}
MANY = {**ONE, "candidates": [f"i{i % 60}" if i % 10 else f"cold{i}" for i in range(500)]}
ROW = {"user_id": "u1", "item_id": "i7", "gender": "f", "price": 3.0, "history": ["i1"], "cover": [0.0, 0.5, 1.0]}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str, path: str, body: Any, headers: Mapping[str, str] | None = None, method: str = "POST", limit: float = 60
) -> Reply:
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=limit)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        sent = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, data, {name: value for name, value in sent.items() if value})
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def both(servers: Servers, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Reply:
    """The one answer of both servers."""
    first, second = (ask(servers.url[name], path, body, headers) for name in ("torchserve", "kserve"))
    assert (first.status, first.body) == (second.status, second.body), (first, second)
    for name in ("content-type", "retry-after", "x-served-arm", "x-ctr-request-id" if headers else "content-type"):
        assert first.headers.get(name) == second.headers.get(name), name
    return second


def v2(*requests: Any, **more: Any) -> dict[str, Any]:
    data = [json.dumps(r) for r in requests]
    return {"inputs": [{"name": "request", "shape": [len(data)], "datatype": "BYTES", "data": data}], **more}


GOOD: list[tuple[str, str, Any]] = [
    ("candidates", V1, {"instances": [ONE]}),
    ("five hundred", V1, {"instances": [MANY]}),
    ("the best two", V1, {"instances": [{**ONE, "k": 2}]}),
    ("a far deadline", V1, {"instances": [{**ONE, "deadline_ms": 60_000}]}),
    ("no context", V1, {"instances": [{"user_id": "u1", "candidates": ["i1"], "context": {"timestamp": 0}}]}),
    ("a cold user", V1, {"instances": [{**ONE, "user_id": "nobody"}]}),
    ("raw rows", V1, {"instances": [{"rows": [ROW, {}, {**ROW, "timestamp": 0}], "k": 1}]}),
    ("several requests", V1, {"instances": [ONE, {"rows": [ROW]}, MANY]}),
    ("v2", V2, v2(ONE, {"rows": [ROW]}, id="q1")),
    ("v2, some outputs", V2, v2(ONE, outputs=[{"name": "probability"}, {"name": "rank"}])),
    ("v1 body on the v2 path", V2, {"instances": [ONE]}),
    ("v2 by candidate", V2, {"inputs": BY_CANDIDATE, "parameters": {"k": 2}}),
    ("v2 by field", V2, {"inputs": BY_FIELD}),
    ("v2 as KServe's client writes it", V2, {**v2(ONE), "model_name": "ctr", "parameters": None}),
    (
        "v2, null is absent",
        V2,
        {**v2(ONE), "id": None, "model_name": None, "model_version": MODEL_VERSION, "outputs": None},
    ),
    ("numbers as text and truth values", V1, {"instances": [{"rows": [{**ROW, "bid": "0.5", "price": True}]}]}),
]

BAD: list[tuple[str, str, Any, int]] = [
    ("no JSON", V1, b"{", 400),
    ("a list", V1, [], 400),
    ("nothing asked", V1, {}, 400),
    ("an unknown key", V1, {"instances": [{**ONE, "surprise": 1}]}, 400),
    ("no candidates", V1, {"instances": [{**ONE, "candidates": []}]}, 400),
    ("too many candidates", V1, {"instances": [{**ONE, "candidates": ["i1"] * 1001}]}, 400),
    ("a wrong tensor", V2, {"inputs": [{"name": "x"}]}, 400),
    ("a size that is none", V2, {"inputs": [{**BY_FIELD[0], "shape": [0]}]}, 400),
    ("data here and behind", V2, {"inputs": [{**BY_FIELD[0], "parameters": {"binary_data_size": 0}}]}, 400),
    ("an unknown output", V2, v2(ONE, outputs=[{"name": "logit"}]), 400),
    ("an unknown parameter", V2, {"inputs": BY_CANDIDATE, "parameters": {"deadline": 5}}, 400),
    ("another model", V2, v2(ONE, model_name="other"), 400),
    ("another version", V2, v2(ONE, model_version="other"), 400),
    ("beyond INT8", V2, {"inputs": [{**BY_CANDIDATE[0], "datatype": "INT8", "data": [300]}, *BY_CANDIDATE[1:]]}, 400),
    ("an id beyond 64 bits", V1, {"instances": [{**ONE, "candidates": [12345678901234567890123]}]}, 400),
    ("a float id", V1, {"instances": [{**ONE, "user_id": 2.0**60}]}, 400),
    ("a key twice", V1, b'{"instances": [{"rows": [{}], "k": 1, "k": 2}]}', 400),
    ("numbers too large", V1, {"instances": [{"rows": [{**ROW, "cover": [3e38, 3e38, 3e38]}]}]}, 400),
    ("too large", V1, b" " * (LARGEST + 1), 413),
    ("too large for the service and not for the front end", V1, b" " * (LARGEST + 60_000), 413),
]


@pytest.mark.parametrize(("path", "body"), [g[1:] for g in GOOD], ids=[g[0] for g in GOOD])
def test_good_requests(servers: Servers, path: str, body: Any) -> None:
    reply = both(servers, path, body, {"X-Request-Id": "abc-1"})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-ctr-request-id"] == reply.headers["x-request-id"] == "abc-1"
    assert reply.headers["x-served-arm"] == "control"
    stages = reply.headers["server-timing"].split(", ")
    names = ["queue", "parse", "features", "encode", "engine", "respond", "total"]
    assert [stage.split(";dur=")[0] for stage in stages] == names
    assert all(float(stage.split(";dur=")[1]) >= 0 for stage in stages)
    assert MODEL_VERSION.encode() in reply.body


@pytest.mark.parametrize(("path", "body", "status"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_requests(servers: Servers, path: str, body: Any, status: int) -> None:
    reply = both(servers, path, body)
    assert reply.status == status
    assert set(reply.json) <= {"error", "field"} and reply.json["error"]
    assert not re.search(r"Traceback|\.py|0x", reply.body.decode())


@pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream", "application/json; charset=utf-8"])
def test_a_body_is_json_whatever_it_is_called(servers: Servers, kind: str) -> None:
    assert both(servers, V1, {"instances": [ONE]}, {"Content-Type": kind, "X-Request-Id": "a"}).status == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("body", [b"a=b", b"body=%7B%7D", json.dumps({"instances": [ONE]}).encode()])
def test_a_form_is_no_request(servers: Servers, kind: str, body: bytes) -> None:
    reply = both(servers, V1, body, {"Content-Type": kind, "X-Request-Id": "a"})
    assert (reply.status, reply.json["field"]) == (400, "body")
    assert "send Content-Type application/json" in reply.json["error"]


def test_binary_tensors(servers: Servers) -> None:
    text = json.dumps(
        {
            "inputs": [
                {"name": "candidates", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 12}},
                {"name": "user_id", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
                {"name": "timestamp", "datatype": "FP64", "shape": [1], "data": [0]},
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = text + pack("BYTES", ["i1", "i2"]) + pack("BYTES", ["u1"])
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    first, second = (ask(url, V2, body, headers) for url in servers.url.values())
    assert (first.status, first.body) == (second.status, second.body)
    assert first.status == 200, first.body
    name = "inference-header-content-length"
    assert first.headers[name] == second.headers[name]
    assert first.headers["content-type"] == "application/octet-stream"
    outputs = json.loads(first.body[: int(first.headers[name])])["outputs"]
    assert all("data" not in output for output in outputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_client_of_kserve_gets_the_same_from_both(servers: Servers, kserve: Any) -> None:
    """The SDK writes the tensors, sends them and reads the answer: an oracle for the binary form."""

    async def ask_both() -> list[dict[str, Any]]:
        found = []
        for url in servers.url.values():
            client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=60))
            request = from_sdk(kserve, BY_CANDIDATE, {"k": 2, "binary_data_output": True})
            answer = await client.infer(url, request, model_name="ctr")
            found.append({output.name: output.as_numpy().tolist() for output in answer.outputs})
            await client.close()
        return found

    first, second = asyncio.run(ask_both())
    assert first == second
    assert set(first["item_id"]) <= {b"i1", b"i2", b"never", "i1", "i2", "never"} and len(first["rank"]) == 2


def test_a_deadline_that_cannot_be_met_is_refused(servers: Servers) -> None:
    for headers, body in (
        ({"X-Deadline-Ms": "0.0001", "X-Request-Id": "a"}, {"instances": [ONE]}),
        ({"X-Request-Id": "a"}, {"instances": [{**ONE, "deadline_ms": 0.0001}]}),
    ):
        replies = [ask(url, V1, body, headers) for url in servers.url.values()]
        for reply in replies:
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert "before the deadline" in reply.json["error"]


def test_the_time_since_the_caller_sent_counts(servers: Servers) -> None:
    for url in servers.url.values():
        headers = {"X-Request-Start": f"t={time.time() - 30:.6f}"}
        assert ask(url, V1, {"instances": [ONE]}, headers).status == 503  # the default deadline is a second
        headers["X-Deadline-Ms"] = "600000"
        assert ask(url, V1, {"instances": [ONE]}, headers).status == 200


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_unknown_models_and_methods(servers: Servers, name: str) -> None:
    """These a server answers in its own words; to TorchServe's handler, explain and PUT are predict, and GET is an empty body."""
    assert ask(servers.url[name], "/v1/models/other:predict", {"instances": [ONE]}).status == 404
    assert ask(servers.url[name], V1, None, method="GET").status in (400, 404, 405)
    for path in ("/v2/repository/models/ctr/unload", "/v1/models/ctr:explain", "/models?url=http://127.0.0.1:1/x.mar"):
        assert ask(servers.url[name], path, {}).status in (400, 404, 405, 503), path
    assert ask(servers.url[name], V1, {"instances": [ONE]}).status == 200, "nothing was unloaded"


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_live_and_ready(servers: Servers, name: str) -> None:
    assert ask(servers.url[name], "/v2/health/live", None, method="GET").status == 200
    assert ask(servers.url[name], "/v2/health/ready", None, method="GET").status == 200


def test_the_kserve_predictor_refuses_in_our_form(servers: Servers) -> None:
    url = servers.url["kserve"]
    for method, path, status in (
        ("GET", V1, 405),
        ("PUT", V2, 405),
        ("POST", "/v1/models/other:predict", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v2/models/ctr/versions/1/infer", 404),
    ):
        reply = ask(url, path, {"instances": [ONE]} if method == "POST" else None, method=method)
        assert (reply.status, set(reply.json)) == (status, {"error", "field"}), path
        assert reply.json["field"] == ("method" if status == 405 else "path")
        assert (reply.headers.get("allow") == "POST") is (status == 405)
        assert "server" not in reply.headers
    assert "Traceback" not in servers.log["kserve"].read_text()


def test_the_kserve_predictor_names_its_model(servers: Servers) -> None:
    url = servers.url["kserve"]
    assert ask(url, "/v1/models/ctr", None, method="GET").json == {"name": "ctr", "ready": True}
    assert ask(url, "/v2/models/ctr/ready", None, method="GET").json == {"name": "ctr", "ready": True}


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_metrics(servers: Servers, name: str) -> None:
    ask(servers.url[name], V1, {"instances": [ONE]})
    path = urllib.parse.urlsplit(servers.metrics[name])
    text = ask(f"{path.scheme}://{path.netloc}", path.path, None, method="GET").body.decode()
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples if s.name.startswith("thinktwice_")]
    values = {(s.name, s.labels.get("outcome"), s.labels.get("le")): s.value for s in samples}
    assert values["thinktwice_requests_total", "ok", None] >= 1
    assert values["thinktwice_request_seconds_bucket", None, "+Inf"] >= 1
    assert values["thinktwice_row_uncertainty_bucket", None, "+Inf"] >= 3
    assert {(s.labels["arm"], s.labels["model_version"]) for s in samples} == {("control", MODEL_VERSION)}


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_logs_name_the_request_and_its_trace_and_no_person(servers: Servers, name: str) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-Id": f"logged-{name}", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    body = {"instances": [{**ONE, "user_id": "somebody-private"}]}
    assert ask(servers.url[name], V1, body, headers).status == 200
    for _ in range(100):
        text = servers.log[name].read_text()
        lines = [json.loads(line[line.index("{") :]) for line in text.splitlines() if f'"logged-{name}"' in line]
        if lines:
            break
        time.sleep(0.05)
    (line,) = lines
    assert (line["trace_id"], line["status"], line["rows"], line["arm"]) == (trace, 200, 3, "control")
    assert "somebody-private" not in text
