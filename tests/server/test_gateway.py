"""What TorchServe's front end lets through, or answers in its own way: through the gateway, a real Envoy, none of it is left.

docs/serving.md, "What the gateway refuses", lists these. Every test asks the gateway in front of a real TorchServe.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.gateway.process import Gateway
from serving.local.torchserve_process import TorchServe, manage
from tests.contract.test_contract import V1, V2, ask, v2
from tests.gateway.gateways import declare, gateway
from tests.server.test_torchserve import ONE

pytestmark = [pytest.mark.server]

GOOD = json.dumps({"instances": [ONE]}).encode()


@pytest.fixture(scope="module")
def live(server: TorchServe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway in front of the one TorchServe, once it says that it is ready."""
    with gateway(tmp_path_factory.mktemp("gateway"), declare({"control": server.port}, head_timeout=3)) as found:
        wait_ready(found, True)
        yield found


def wait_ready(found: Gateway, ready: bool, limit: float = 30.0) -> None:
    end = time.monotonic() + limit
    while (ask(found.url, "/v2/health/ready", None, method="GET").status == 200) is not ready:
        assert time.monotonic() < end
        time.sleep(0.1)


def raw(server: Gateway, message: bytes, limit: float = 20.0) -> bytes:
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


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "FOO", "post", "HEAD"])
def test_only_post_predicts(live: Gateway, method: str) -> None:
    assert status(raw(live, request(line=f"{method} {V1} HTTP/1.1"))) in (400, 405, 501)


@pytest.mark.parametrize("path", ["/v1/models/ctr:predict-not", "/v1/models/ctr:x:predict", "/v1/models/ctr:predict/"])
def test_only_the_predict_paths_predict(live: Gateway, path: str) -> None:
    assert ask(live.url, path, {"instances": [ONE]}).status == 404


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/ctr", "/v2/models/ctr", "/v2/models/ctr/ready"])
def test_models_are_listed(live: Gateway, path: str) -> None:
    assert ask(live.url, path, None, method="GET").status == 200


def test_the_protocol_names_no_software(live: Gateway) -> None:
    assert b"orchserve" not in ask(live.url, "/v2", None, method="GET").body


@pytest.mark.parametrize("path", ["/nothing", "/v1/models/other:predict", "/v2/models/other/infer"])
def test_errors_have_one_form(live: Gateway, path: str) -> None:
    assert form_of_errors(ask(live.url, path, {"instances": [ONE]}).body)


def test_a_body_that_is_far_too_large_is_refused_with_its_reason(live: Gateway) -> None:
    # Only the start of the body is sent: the answer does not wait for the rest, and the gateway closes soon after it.
    answer = raw(live, request(b" " * 1000, length=str(5 << 20)))
    assert status(answer) == 413 and form_of_errors(answer.split(b"\r\n\r\n", 1)[1])


def test_requests_behind_a_bad_one_are_answered(live: Gateway) -> None:
    answers = raw(live, request(b"{") + request() * 3)
    assert answers.count(b"HTTP/1.1 ") == 4


@pytest.mark.parametrize(
    "message",
    [
        request(length=f"+{len(GOOD)}"),
        request(GOOD, "Transfer-Encoding: xchunked"),
        request(b"0\r\n\r\n", "Transfer-Encoding: chunked"),
    ],
    ids=["sign", "coding", "both"],
)
def test_ambiguous_framing_is_refused(live: Gateway, message: bytes) -> None:
    """Bare line feeds are ambiguous to a server alone: Envoy ends lines by its own rules and sends \\r\\n (tests/gateway/test_ingress.py)."""
    assert b"HTTP/1.1 200" not in raw(live, message)
    assert b"is not valid JSON" not in raw(live, message)


def test_a_request_line_of_nobody_leaves_no_stack_trace(live: Gateway, server: TorchServe) -> None:
    before = server.log.read_text()
    assert status(raw(live, b"GET * HTTP/1.1\r\nHost: h\r\n\r\n")) == 400
    assert "\tat " not in server.log.read_text()[len(before) :]


def test_half_a_request_does_not_keep_a_connection_open(live: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(b"POST ")
        connection.settimeout(15.0)
        try:
            closed = connection.recv(100) != b"POST "
        except TimeoutError:
            closed = False
    assert closed


def test_a_form_is_refused_before_it_is_taken_apart(live: Gateway, server: TorchServe) -> None:
    """The worker is not held up by it, but the front end makes an object of every field: 200 MB of a body of 2 MB."""
    (java,) = [p for p in psutil.Process(server.process.pid).children(recursive=True) if p.name() == "java"]
    before = java.memory_info().rss
    reply = ask(live.url, V1, b"a&" * 600_000, {"Content-Type": "application/x-www-form-urlencoded"})
    assert reply.status in (400, 415), reply
    assert java.memory_info().rss - before < 40 << 20


def test_the_last_of_two_deadlines_counts_however_they_are_spelled(live: Gateway) -> None:
    """The front end hands headers over without their order where their names differ in case."""
    for first, last in (
        ("x-deadline-ms", "X-DEADLINE-MS"),
        ("X-DEADLINE-MS", "x-deadline-ms"),
        ("X-Deadline-Ms", "x-deadline-ms"),
    ):
        assert status(raw(live, request(GOOD, f"{first}: 0", f"{last}: 60000"))) == 200
        assert status(raw(live, request(GOOD, f"{first}: 60000", f"{last}: 0"))) == 503


def test_grpc_says_when_a_request_failed(live: Gateway) -> None:
    """TorchServe's own interface answers OK with an error as the body; the gateway speaks no gRPC."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{live.port}") as channel:
        call = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\x0a\x03ctr", timeout=20)  # model_name = 1
    assert error.value.code() is not grpc.StatusCode.OK


def test_readiness_says_that_no_worker_is_there(champion: Any, tmp_path: Path) -> None:
    from serving.local.torchserve_process import running
    from tests.server.conftest import free_port

    port, store = free_port(), champion.feature_store_dir
    with (
        running(champion.archive, feature_store=store, port=port, log=tmp_path / "log") as server,
        gateway(tmp_path / "gateway", declare({"control": port})) as live,
    ):
        wait_ready(live, True)
        assert ask(live.url, "/v1/models/ctr", None, method="GET").json == {"name": "ctr", "ready": True}
        assert manage(server, "PUT", "/models/ctr?min_worker=0&max_worker=0&synchronous=true", limit=60)[0] == 200
        wait_ready(live, False)
        assert ask(server.url, "/v2/health/ready", None, method="GET").status == 200, "TorchServe says so itself now"
        for path in ("/v1/models/ctr", "/v2/models/ctr/ready", "/v2/health/ready", "/ping"):
            assert ask(live.url, path, None, method="GET").status in (503, 404)
        assert ask(live.url, V1, {"instances": [ONE]}).status == 503


def test_both_protocols_pass_unchanged(live: Gateway, server: TorchServe) -> None:
    for path, body in ((V1, {"instances": [ONE]}), (V2, v2(ONE)), (V1, {"instances": [{}]}), (V1, b"{")):
        through, direct = (ask(url, path, body, {"X-Request-Id": "same"}) for url in (live.url, server.url))
        assert (through.status, through.body) == (direct.status, direct.body)
        assert through.headers["x-request-id"] == "same" and through.headers["x-served-arm"] == "control"
        assert "server" not in through.headers
