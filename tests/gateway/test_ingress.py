"""What reaches an arm through the gateway, byte by byte, and what never does."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway.process import Gateway
from tests.contract.test_contract import V1, V2, ask
from tests.experiment.files import experiment, repeatable
from tests.gateway.gateways import declare, gateway, log_lines, need_envoy
from tests.gateway.load import load
from tests.gateway.upstreams import Upstream, upstreams

pytestmark = pytest.mark.server

MOST = 100_000  # bytes of a body


@pytest.fixture(scope="module")
def arm() -> Iterator[Upstream]:
    need_envoy()
    with upstreams("control") as (found,):
        yield found


@pytest.fixture(scope="module")
def live(arm: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    declared = declare(
        {"control": arm.port}, head_timeout=1, request_timeout=2, max_body_bytes=MOST, max_connections=40
    )
    with gateway(tmp_path_factory.mktemp("gateway"), declared) as found:
        yield found


def talk(live: Gateway, message: bytes, limit: float = 20.0) -> bytes:
    """The first answer, or what came of it until the gateway ended the connection."""
    found = b""
    with socket.create_connection(("127.0.0.1", live.port), timeout=limit) as connection:
        try:
            connection.sendall(message)
            while part := connection.recv(1 << 16):
                found += part
                head, end, body = found.partition(b"\r\n\r\n")
                size = re.search(rb"\r\ncontent-length: (\d+)", head)
                if end and (message.startswith(b"HEAD ") or (size and len(body) >= int(size[1]))):
                    break
        except ConnectionError:
            pass
    return found


def predictions(arm: Upstream) -> list[bytes]:
    """Request lines that came."""
    return [head.split(b"\r\n")[0] for head in arm.heads]


methods = st.one_of(
    st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "post", "POST"]),
    st.text("ABCXYZpost", min_size=1, max_size=8),
)
around = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
paths = st.one_of(
    st.builds(lambda a, b: a + b, st.sampled_from([V1, V2, "/v1/models/ctr", "/", "*", "http://h" + V1]), around),
    st.builds(lambda a: "/" + a, around),
    st.sampled_from(
        [V1, V2, V1 + "?a=b", V1 + "/", "/" + V1, V1.replace(":", "%3A"), "/v1/models/../models/ctr:predict"]
    ),
)


@settings(repeatable, max_examples=150)
@given(methods, paths)
def test_only_a_post_to_a_predict_path_reaches_an_arm(live: Gateway, arm: Upstream, method: str, path: str) -> None:
    before = len(predictions(arm))
    answer = talk(
        live, f"{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}".encode()
    )
    came = predictions(arm)[before:]
    good = method == "POST" and path.removeprefix("http://h") in (V1, V2)
    assert len(came) == good, (method, path, came)
    code = int(answer.split(b" ", 2)[1]) if answer else 400
    assert (code == 200) is (good or (method == "GET" and path.removeprefix("http://h") in ("/",)))
    assert good or code != 500


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ("content-type: application/x-www-form-urlencoded", 415),
        ("Content-Type: Application/X-WWW-Form-URLEncoded; charset=utf-8", 415),
        ("content-type: multipart/form-data; boundary=x", 415),
        ("content-type: application/json\r\ncontent-type: multipart/form-data; boundary=x", 415),
        ("content-type: multipart/form-data\r\ncontent-type: application/json", 415),
        ("content-type: application/json", 200),
        ("content-type: ", 200),
        ("x: y", 200),
        ("x-request-id: " + "a" * 129, 400),
        ("x-request-id: \xfc", 400),
        ("x: " + "a" * 20_000, 431),
        ("\r\n".join(f"x{i}: y" for i in range(120)), 431),
    ],
)
def test_headers_that_are_refused(live: Gateway, arm: Upstream, fields: str, code: int) -> None:
    before = len(predictions(arm))
    message = f"POST {V1} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 2\r\n{fields}\r\n\r\n{{}}".encode(
        "latin-1"
    )
    answer = talk(live, message)
    assert int(answer.split(b" ", 2)[1]) == code
    assert len(predictions(arm)) - before == (code == 200)
    if code != 200:
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "field"}


@pytest.mark.parametrize("size", [MOST, MOST + 1, 10 * MOST])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_bounded_however_they_are_sent(live: Gateway, arm: Upstream, size: int, chunked: bool) -> None:
    before = len(predictions(arm))
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, b" " * size) if chunked else b" " * size
    answer = talk(live, f"POST {V1} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{framing}\r\n\r\n".encode() + body)
    good = size <= MOST
    assert len(predictions(arm)) - before == good
    if good:
        assert answer.startswith(b"HTTP/1.1 200") and arm.bodies[-1] == b" " * size
        assert f"content-length: {size}".encode() in arm.heads[-1]  # one framing, the gateway's own
    elif answer:  # a client that goes on sending may see its connection reset before it reads
        assert answer.startswith(b"HTTP/1.1 413") and json.loads(answer.partition(b"\r\n\r\n")[2])["field"] == "body"


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(live: Gateway) -> None:
    answer = talk(live, f"POST {V1} HTTP/1.1\r\nhost: h\r\ncontent-length: {MOST + 1}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413") and b'"field":"body"' in answer


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"P",
        b"POST ",
        f"POST {V1} HTTP/1.1\r\nhost: h".encode(),
        f"POST {V1} HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n12345".encode(),
        f"POST {V1} HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\n123".encode(),
    ],
    ids=["nothing", "a letter", "half a line", "half the headers", "half a body", "half a chunk"],
)
def test_a_slow_client_costs_no_arm_anything(live: Gateway, arm: Upstream, message: bytes, tmp_path: Path) -> None:
    if not message:  # a connection without a request is kept longer: that of a client that will ask again
        with gateway(tmp_path, declare({"control": arm.port}, idle_timeout=1)) as other:
            assert talk(other, message) == b""
        return
    before = len(predictions(arm))
    answer = talk(live, message)
    assert answer == b"" or answer.split(b" ", 2)[1] in (b"408", b"400"), answer
    assert len(predictions(arm)) == before


def test_bare_line_feeds_reach_an_arm_as_one_plain_request(live: Gateway, arm: Upstream) -> None:
    """Envoy takes a bare line feed for the end of a line, as the standard allows. No server sees one, so none can disagree."""
    hidden = b"x: y\nhost: h\ncontent-length: 5"
    for message in (
        b"POST %s HTTP/1.1\nhost: h\nconnection: close\ncontent-length: 2\n\n{}" % V1.encode(),
        b"POST %s HTTP/1.1\r\nhost: h\r\nconnection: close\r\n%s\r\ncontent-length: 2\r\n\r\n{}"
        % (V1.encode(), hidden),
        b"POST %s HTTP/1.1\r\nhost: h\r\nconnection: close\r\nx: a\rb\r\ncontent-length: 2\r\n\r\n{}" % V1.encode(),
    ):
        before = len(arm.heads)
        answer = talk(live, message)
        for head in arm.heads[before:]:
            assert head.count(b"\n") == head.count(b"\r\n") == head.count(b"\r")
            assert head.lower().count(b"content-length:") == 1 and b"HTTP/1.1" not in head.split(b"\r\n", 1)[1]
        assert len(arm.heads) - before <= 1 + answer.count(b"HTTP/1.1 200"), "no second request was hidden in it"


def test_connections_are_bounded_and_come_back(live: Gateway) -> None:
    held = []
    try:
        for _ in range(60):
            one = socket.create_connection(("127.0.0.1", live.port), timeout=5)
            one.sendall(b"POST")
            held.append(one)
        end = time.monotonic() + 10
        while live.admin.stats()["http.in.downstream_cx_active"] > 40:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        for one in held:
            one.close()
    end = time.monotonic() + 10
    while True:
        try:
            if ask(live.url, V1, {}).status == 200:
                return
        except OSError:
            pass
        assert time.monotonic() < end
        time.sleep(0.1)


def test_lists_and_readiness_are_the_gateways_own(live: Gateway, arm: Upstream) -> None:
    end = time.monotonic() + 20
    while ask(live.url, "/v2/health/ready", None, method="GET").status != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    for path, content in (
        ("/", {"status": "alive"}),
        ("/v1/models", {"models": ["ctr"]}),
        ("/v1/models/ctr", {"name": "ctr", "ready": True}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/ctr/ready", {"name": "ctr", "ready": True}),
    ):
        reply = ask(live.url, path, None, method="GET")
        assert (reply.status, reply.json, reply.headers["content-type"]) == (200, content, "application/json")
        assert ask(live.url, path, {}, method="POST").status == 405
    arm.mode = "500"  # it lives, and predicts nothing
    try:
        end = time.monotonic() + 20
        while ask(live.url, "/v2/health/ready", None, method="GET").status != 503:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert ask(live.url, "/v1/models/ctr", None, method="GET").json == {"name": "ctr", "ready": False}
        assert ask(live.url, "/v2/health/live", None, method="GET").status == 200
        assert ask(live.url, V1, {}).status == 500, "it is asked all the same: it may be well for the next request"
    finally:
        arm.mode = "ok"


def test_what_the_gateway_refuses_is_in_the_log_and_what_it_answers_is_not(live: Gateway) -> None:
    for method, path, request in (
        ("PUT", V1, "a-put"),
        ("POST", "/nothing", "a-path"),
        ("GET", "/v1/models", "a-list"),
    ):
        ask(live.url, path, None, {"X-Request-Id": request}, method=method)
    lines = {line["request_id"]: line for line in log_lines(live, {"a-put", "a-path"})}
    assert (lines["a-put"]["route"], lines["a-put"]["code"], lines["a-put"]["assigned"]) == (
        "ingress-method",
        405,
        None,
    )
    assert lines["a-path"]["route"] == "ingress-path" and "a-list" not in lines


def test_what_is_no_request_leaves_no_line_that_looks_broken(live: Gateway) -> None:
    before = live.admin.stats()["http.in.downstream_rq_4xx"]
    bad = (b"hello\r\n\r\n", b"GET * HTTP/1.1\r\nhost: h\r\n\r\n", b"POST %s HTTP/1.0\r\n\r\n" % V1.encode())
    for message in bad:
        assert talk(live, message).split(b" ", 2)[1] in (b"400", b"426")
    ask(live.url, V1, {}, {"X-Request-Id": "after-junk"})
    assert all(line["request_id"] for line in log_lines(live, {"after-junk"}))
    assert live.admin.stats()["http.in.downstream_rq_4xx"] >= before + 1


def test_nobody_is_named_when_nobody_answers(tmp_path: Path) -> None:
    need_envoy()
    with upstreams("control") as (arm,):
        with gateway(tmp_path, declare({"control": arm.port})) as live:
            arm.kill()
            reply = ask(live.url, V1, {}, {"X-Request-Id": "nobody"})
            assert (reply.status, set(reply.json)) == (503, {"error", "field"})
            assert reply.headers["x-served-arm"] == "" and reply.headers["retry-after"] == "1"
            (line,) = [line for line in log_lines(live, {"nobody"}) if line["request_id"] == "nobody"]
            assert not line["served"] and line["upstream"] == "control"
    with gateway(tmp_path / "late", declare({"control": arm.port})) as live:
        assert [(p.arm, p.served) for p in live.probes] == [("control", None)]


def test_a_shadow_gets_copies_and_harms_nobody(arm: Upstream, tmp_path: Path) -> None:
    with upstreams("t1") as (shadow,):
        ports = {"control": arm.port, "exp1/t1": shadow.port}
        declared = declare(ports, [experiment("exp1")], shadow=["exp1/t1"])
        with gateway(tmp_path, declared) as live:
            with load(live.port, 100) as found:
                time.sleep(0.5)
                shadow.mode = "slow"
                time.sleep(0.5)
                shadow.kill()
                time.sleep(0.5)
            assert not found.bad() and set(found.arms.values()) == {"control"}
            lines = [line for line in log_lines(live, set(found.statuses)) if line["request_id"] in found.statuses]
            assert len(lines) == len(found.statuses), "copies are in no access log"
        copies = [head for head in shadow.heads if b"-shadow\r\n" in head]
        assert copies and copies == shadow.heads
        for head in copies[:5]:
            assert b"x-arm: control" in head and b"x-enrolled: 0" in head
            assert any(request.encode() in head for request in found.statuses)
