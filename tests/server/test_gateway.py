"""What TorchServe's front end lets through, or answers in its own way, and neither our worker nor its settings can change.

Each of these is wrong today where callers reach TorchServe without a gateway (docs/serving.md, "What the gateway must refuse"), so
each test is expected to fail, strictly: the day one passes, it leaves this file and the list. The KServe predictor has none of
these faults.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.local.torchserve_process import TorchServe, manage
from tests.contract.test_contract import V1, ask
from tests.server.test_torchserve import ONE

pytestmark = [pytest.mark.server]

wrong = pytest.mark.xfail(strict=True, raises=AssertionError, reason="TorchServe's front end decides about it")
GOOD = json.dumps({"instances": [ONE]}).encode()


def raw(server: TorchServe, message: bytes, limit: float = 20.0) -> bytes:
    """What comes back over one connection until it is closed or nothing more comes."""
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=limit) as connection:
        connection.sendall(message)
        try:
            while part := connection.recv(1 << 16):
                found += part
                if b"content-length: " in found.lower() and found.count(b"HTTP/1.1") == message.count(b" HTTP/1.1"):
                    connection.settimeout(1.0)
        except (TimeoutError, ConnectionResetError):
            pass
    return found


def request(body: bytes = GOOD, *headers: str, line: str = f"POST {V1} HTTP/1.1", length: str | None = None) -> bytes:
    size = f"Content-Length: {len(body) if length is None else length}"
    head = "\r\n".join((line, "Host: h", "Content-Type: application/json", size, *headers, "", ""))
    return head.encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def form_of_errors(answer: Any) -> bool:
    try:
        return set(json.loads(answer)) == {"error", "field"}
    except ValueError:
        return False


@wrong
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "FOO", "post", "HEAD"])
def test_only_post_predicts(server: TorchServe, method: str) -> None:
    assert status(raw(server, request(line=f"{method} {V1} HTTP/1.1"))) in (400, 405, 501)


@wrong
@pytest.mark.parametrize("path", ["/v1/models/ctr:predict-not", "/v1/models/ctr:x:predict", "/v1/models/ctr:predict/"])
def test_only_the_predict_paths_predict(server: TorchServe, path: str) -> None:
    assert ask(server.url, path, {"instances": [ONE]}).status == 404


@wrong
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/ctr", "/v2/models/ctr", "/v2/models/ctr/ready"])
def test_models_are_listed(server: TorchServe, path: str) -> None:
    assert ask(server.url, path, None, method="GET").status == 200


@wrong
def test_the_protocol_names_no_software(server: TorchServe) -> None:
    assert b"orchserve" not in ask(server.url, "/v2", None, method="GET").body


@wrong
@pytest.mark.parametrize("path", ["/nothing", "/v1/models/other:predict", "/v2/models/other/infer"])
def test_errors_have_one_form(server: TorchServe, path: str) -> None:
    assert form_of_errors(ask(server.url, path, {"instances": [ONE]}).body)


@wrong
def test_a_body_that_is_far_too_large_is_refused_with_its_reason(server: TorchServe) -> None:
    reply = ask(server.url, V1, b" " * (5 << 20))
    assert reply.status == 413 and form_of_errors(reply.body)


@wrong
def test_requests_behind_a_bad_one_are_answered(server: TorchServe) -> None:
    answers = raw(server, request(b"{") + request() * 3)
    assert answers.count(b"HTTP/1.1 ") == 4


@wrong
@pytest.mark.parametrize(
    "message",
    [
        request(length=f"+{len(GOOD)}"),
        request(GOOD, "Transfer-Encoding: xchunked"),
        request(b"0\r\n\r\n", "Transfer-Encoding: chunked"),
        request().replace(b"\r\n", b"\n", 3),
    ],
    ids=["sign", "coding", "both", "bare line feed"],
)
def test_ambiguous_framing_is_refused(server: TorchServe, message: bytes) -> None:
    assert b"HTTP/1.1 200" not in raw(server, message)
    assert b"is not valid JSON" not in raw(server, message)


@wrong
def test_a_request_line_of_nobody_leaves_no_stack_trace(server: TorchServe) -> None:
    before = server.log.read_text()
    assert status(raw(server, b"GET * HTTP/1.1\r\nHost: h\r\n\r\n")) == 400
    assert "\tat " not in server.log.read_text()[len(before) :]


@wrong
def test_half_a_request_does_not_keep_a_connection_open(server: TorchServe) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST ")
        connection.settimeout(15.0)
        try:
            closed = connection.recv(100) != b"POST "
        except TimeoutError:
            closed = False
    assert closed


@wrong
def test_a_form_is_refused_before_it_is_taken_apart(server: TorchServe) -> None:
    """The worker is not held up by it, but the front end makes an object of every field: 200 MB of a body of 2 MB."""
    (java,) = [p for p in psutil.Process(server.process.pid).children(recursive=True) if p.name() == "java"]
    before = java.memory_info().rss
    reply = ask(server.url, V1, b"a&" * 600_000, {"Content-Type": "application/x-www-form-urlencoded"})
    assert reply.status in (400, 415), reply
    assert java.memory_info().rss - before < 40 << 20


@wrong
def test_the_last_of_two_deadlines_counts_however_they_are_spelled(server: TorchServe) -> None:
    """The front end hands headers over without their order where their names differ in case."""
    for first, last in (
        ("x-deadline-ms", "X-DEADLINE-MS"),
        ("X-DEADLINE-MS", "x-deadline-ms"),
        ("X-Deadline-Ms", "x-deadline-ms"),
    ):
        assert status(raw(server, request(GOOD, f"{first}: 0", f"{last}: 60000"))) == 200
        assert status(raw(server, request(GOOD, f"{first}: 60000", f"{last}: 0"))) == 503


@wrong
def test_grpc_says_when_a_request_failed(server: TorchServe, tmp_path: Path) -> None:
    """The inference interface, which listens on this machine: an error is the body of a success."""
    code, body = _grpc_prediction(server)
    assert code != "OK", body


@wrong
@pytest.mark.parametrize("path", ["/v2/health/ready", "/ping"])
def test_readiness_says_that_no_worker_is_there(champion: Any, tmp_path: Path, path: str) -> None:
    from serving.local.torchserve_process import running
    from tests.server.conftest import free_port

    log = tmp_path / "log"
    with running(champion.archive, feature_store=champion.feature_store_dir, port=free_port(), log=log) as server:
        assert manage(server, "PUT", "/models/ctr?min_worker=0&max_worker=0&synchronous=true", limit=60)[0] == 200
        for _ in range(200):
            if ask(server.url, V1, {"instances": [ONE]}).status == 503:
                break
            time.sleep(0.1)
        ready = ask(server.url, path, None, method="GET")
    assert ready.status != 200, ready.body


def _grpc_prediction(server: TorchServe) -> tuple[str, bytes]:
    """Code and body of a prediction without a body."""
    import grpc

    port = next(
        line.split("=", 1)[1]
        for line in (server.work / "config.properties").read_text().splitlines()
        if line.startswith("grpc_inference_port=")
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
        try:
            return "OK", call(b"\x0a\x03ctr", timeout=20)  # model_name = 1
        except grpc.RpcError as error:
            return error.code().name, b""  # type: ignore[attr-defined]
