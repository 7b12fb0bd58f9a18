"""Headers, codings, paths and deadlines mean the same to both servers; and what bounds the KServe predictor."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
import urllib.parse
import zlib
from collections.abc import Sequence
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.adapters.bounded_http import LARGEST_HEAD, SLOWEST
from tests.contract.conftest import LARGEST, Servers
from tests.contract.test_contract import ONE, V1, V2, Reply, ask, both
from thinktwice import __version__

pytestmark = pytest.mark.server

BODY = {"instances": [ONE]}
RAW = json.dumps(BODY).encode()
CODED = {
    "gzip": gzip.compress(RAW),
    "deflate": zlib.compress(RAW),
    "br": b"\x0b\x02\x80" + RAW + b"\x03",  # one stored block: there is no library for it here
    "zstd": b"\x28\xb5\x2f\xfd" + RAW,
}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("path", [V1, V2])
def test_compressed_bodies_are_refused_as_such(servers: Servers, coding: str, path: str) -> None:
    reply = both(servers, path, CODED[coding], {"Content-Encoding": coding, "X-Request-Id": "m1"})
    assert reply.status == 415
    assert reply.json["field"] == "content-encoding" and f"compressed ({coding})" in reply.json["error"]
    for url in servers.url.values():
        assert ask(url, path, CODED[coding], {"Content-Encoding": coding}).headers["accept-encoding"] == "identity"
    assert both(servers, V1, BODY, {"Content-Encoding": "identity", "X-Request-Id": "m1"}).status == 200


@pytest.mark.parametrize(
    ("text", "status"), [("0", 503), ("-5", 503), ("-1e3", 503), ("abc", 400), ("nan", 400), ("inf", 400)]
)
def test_a_deadline_header_means_what_it_says(servers: Servers, text: str, status: int) -> None:
    reply = both(servers, V1, BODY, {"X-Deadline-Ms": text, "X-Request-Id": "m1"})
    assert reply.status == status
    assert reply.json["field"] == ("x-deadline-ms" if status == 400 else "")
    assert ("retry-after" in reply.headers) == (status == 503)


def send(url: str, headers: Sequence[tuple[str, str]], body: bytes = RAW) -> Reply:
    """A request with headers as they are given, also twice."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    try:
        connection.putrequest("POST", V1)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers):
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_of_two_deadline_headers_the_last_counts(servers: Servers, name: str) -> None:
    for first, last, status in (("60000", "0", 503), ("0", "60000", 200), ("x", "60000", 200), ("60000", "x", 400)):
        assert send(servers.url[name], [("X-Deadline-Ms", first), ("X-Deadline-Ms", last)]).status == status


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_a_start_that_says_nothing_is_counted(servers: Servers, name: str) -> None:
    def ignored() -> dict[str, float]:
        place = urllib.parse.urlsplit(servers.metrics[name])
        text = ask(f"{place.scheme}://{place.netloc}", place.path, None, method="GET").body.decode()
        samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
        return {s.labels["reason"]: s.value for s in samples if s.name == "thinktwice_request_start_ignored_total"}

    before = ignored()
    starts = {"malformed": "yesterday", "too old": f"t={time.time() - 500}", "in the future": f"t={time.time() + 500}"}
    for start in starts.values():
        assert ask(servers.url[name], V1, BODY, {"X-Request-Start": start}).status == 200
    after = ignored()
    assert {reason: after[reason] - before.get(reason, 0) for reason in starts} == dict.fromkeys(starts, 1)


def test_a_slow_clock_of_the_gateway_keeps_nobody_out_for_long(servers: Servers) -> None:
    """It looks as if every request had waited two seconds, and the deadline is one."""
    for name, url in servers.url.items():
        found = []
        for _ in range(60):
            found.append(ask(url, V1, BODY, {"X-Request-Start": f"t={time.time() - 2:.6f}"}).status)
            time.sleep(0.03)  # the server is idle in between
        assert found[0] == 503 and set(found[-20:]) == {200}, (name, found)
        assert "the clock of the callers is off" in servers.log[name].read_text()
        for _ in range(60):
            assert ask(url, V1, BODY, {"X-Request-Start": f"t={time.time():.6f}"}).status == 200
            time.sleep(0.03)
        assert "the clock of the callers is right again" in servers.log[name].read_text()


def test_nothing_but_predict_predicts(servers: Servers) -> None:
    for path in (
        "/v1/models/ctr:explain",
        "/v2/models/ctr/explain",
        "/predictions/ctr",
        "/explanations/ctr",
        "/invocations",
    ):
        for url in servers.url.values():
            reply = ask(url, path, BODY)
            assert (reply.status, set(reply.json)) == (404, {"error", "field"}), path
            assert reply.json["field"] == "path"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        {},
        {"instances": []},
        {"instances": [{}]},
        {"inputs": []},
        {"instances": [{**ONE, "k": 0}]},
    ],
    ids=str,
)
def test_errors_have_one_form(servers: Servers, body: Any) -> None:
    for path in (V1, V2):
        reply = both(servers, path, body)
        assert (reply.status, set(reply.json)) == (400, {"error", "field"})


@pytest.mark.parametrize("name", ["torchserve", "kserve"])
def test_a_night_of_small_requests_keeps_no_large_one_out(servers: Servers, name: str) -> None:
    """More of one size than any memory of others might last."""
    place = urllib.parse.urlsplit(servers.url[name])
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    one = json.dumps({"instances": [{**ONE, "candidates": ["i1"]}]}).encode()
    for _ in range(1400):
        connection.request("POST", V1, one, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()
    large = {"instances": [{**ONE, "candidates": [f"i{i % 60}" for i in range(1000)]}]}
    assert [ask(servers.url[name], V1, large).status for _ in range(5)] == [200] * 5


# What bounds the KServe predictor; in front of TorchServe a gateway does (tests/server/test_gateway.py).


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/ctr", "/v2", "/v2/models/ctr", "/v2/models/ctr/ready", "/v2/health/live"]
)
def test_the_kserve_predictor_lists_its_model(servers: Servers, path: str) -> None:
    reply = ask(servers.url["kserve"], path, None, method="GET")
    assert reply.status == 200 and isinstance(reply.json, dict)
    assert ("ctr" in reply.body.decode()) == ("models" in path)


def test_the_kserve_predictor_names_no_software_of_others(servers: Servers) -> None:
    reply = ask(servers.url["kserve"], "/v2", None, method="GET")
    assert reply.json == {"name": "thinktwice", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert "server" not in reply.headers


@pytest.mark.parametrize("path", [f"{V1}/", f"{V2}/", "/v1/models/ctr/", "/v1/models/", "//evil.example/v1/models"])
def test_nobody_is_sent_elsewhere(servers: Servers, path: str) -> None:
    for method in ("GET", "POST"):
        reply = ask(servers.url["kserve"], path, None, {"Host": "evil.example"}, method=method)
        assert reply.status in (404, 405) and "location" not in reply.headers
        assert set(reply.json) == {"error", "field"}


@pytest.mark.parametrize("size", [LARGEST_HEAD, 1 << 20, 8 << 20, 32 << 20])
def test_large_headers_are_refused_and_not_kept(servers: Servers, size: int) -> None:
    process = process_at(servers.url["kserve"])
    before = process.memory_info().rss
    for _ in range(3):
        try:
            assert send(servers.url["kserve"], [("X-B", "a" * size)]).status == 431
        except (ConnectionResetError, BrokenPipeError):
            assert size > 1 << 20, "only who goes on sending for a second is cut off"
    assert process.memory_info().rss - before < 8 << 20
    assert send(servers.url["kserve"], [("X-B", "a" * (LARGEST_HEAD - 1000))]).status == 200


def process_at(url: str) -> psutil.Process:
    port = urllib.parse.urlsplit(url).port
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == psutil.CONN_LISTEN}
    return psutil.Process(pid)


@pytest.mark.parametrize("length", [str(LARGEST + 1), "9000000000", "9" * 30])
def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(servers: Servers, length: str) -> None:
    head = f"POST {V1} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n".encode()
    with socket.create_connection(address(servers.url["kserve"]), timeout=30) as connection:
        connection.sendall(head)
        answer = connection.recv(4096)
    assert b" 413 " in answer or (len(length) > 19 and b" 400 " in answer)


def address(url: str) -> tuple[str, int]:
    place = urllib.parse.urlsplit(url)
    return place.hostname or "", place.port or 0


def test_slow_senders_are_given_up_and_their_neighbours_served(servers: Servers) -> None:
    """Fifty of them, half in the head of a request and half in its body."""
    url = servers.url["kserve"]
    held = []
    for number in range(50):
        connection = socket.create_connection(address(url), timeout=30)
        head = f"POST {V1} HTTP/1.1\r\nHost: h\r\n" + ("Content-Length: 100\r\n\r\n{" if number % 2 else "X-A: ")
        connection.sendall(head.encode())
        held.append(connection)
    end = time.monotonic() + SLOWEST
    while time.monotonic() < end:
        assert ask(url, V1, BODY).status == 200
        for connection in held:
            try:
                connection.sendall(b" ")
            except OSError:
                break
        time.sleep(1)
    found = []
    for connection in held:
        with connection:
            text = b""
            try:
                while part := connection.recv(4096):
                    text += part
            except ConnectionResetError:
                pass
            found.append(text)
    assert all(b" 408 " in text for text in found), found
    assert ask(url, V1, BODY).status == 200
