"""HTTP within bounds: heads, slow senders and readers, and more connections than there are file descriptors for."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from itertools import pairwise
from typing import Any

import psutil
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.adapters import bounded_http
from serving.adapters.bounded_http import LARGEST_HEAD, BoundedHTTP, bounded, most_connections
from serving.protocol.errors import error_body
from tests.serving.conftest import Lines

BIG = b"x" * (32 << 20)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the size of the body; at /big with more than any buffer takes, at /slow after a while."""
    assert scope["type"] == "http"
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    body = BIG if scope["path"] == "/big" else b"%d" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Starts a server with a protocol class; its port."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(kind: type[BoundedHTTP] | None = None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=kind or bounded(), log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return int(listener.getsockname()[1])

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


def talk(port: int, *pieces: bytes, limit: float = 20.0) -> bytes:
    """All that comes back until the server closes."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=limit) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        while part := connection.recv(1 << 16):
            found += part
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def request(path: str = "/", headers: str = "", body: bytes = b"abc") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def last(path: str = "/", headers: str = "") -> bytes:
    """A request after which the connection is to be closed."""
    return request(path, f"connection: close\r\n{headers}")


def cut(message: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(place % len(message) for place in cuts), len(message)]
    return [message[a:b] for a, b in pairwise(places) if a < b]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 3 * LARGEST_HEAD),
    st.sampled_from(["one header", "many", "the path"]),
    st.lists(st.integers(0, 1 << 20), max_size=5),
)
def test_heads_up_to_a_size_are_taken_and_larger_ones_refused(
    shared_port: int, size: int, kind: str, cuts: list[int]
) -> None:
    if kind == "one header":
        message = last(headers=f"x: {'a' * size}\r\n")
    elif kind == "many":
        message = last(headers="".join(f"h{i}: v\r\n" for i in range(size // 8)))
    else:
        message = last(path="/" + "a" * size)
    head = message.index(b"\r\n\r\n")
    answer = talk(shared_port, *cut(message, cuts))
    if head < LARGEST_HEAD - 64:
        assert statuses(answer) == [200] and answer.endswith(b"3")
    elif head > LARGEST_HEAD + 64:
        assert statuses(answer) == [431]
        assert b"connection: close\r\n" in answer and answer.endswith(
            error_body(
                f"the request line and headers are too large, at most {LARGEST_HEAD} bytes are accepted: send fewer",
                "headers",
            )
        )
    else:
        assert statuses(answer) in ([200], [431])


@pytest.fixture(scope="module")
def shared_port() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=bounded(), log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield int(listener.getsockname()[1])
    server.should_exit = True
    thread.join()


def test_a_head_without_end_is_not_kept(serve: Callable[..., int]) -> None:
    """It is refused while it comes, what still comes is thrown away, and then the connection is closed."""
    port = serve()
    before = psutil.Process().memory_info().rss
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"a" * 300_000)
        assert statuses(connection.recv(4096)) == [431]
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                connection.sendall(b"a" * 65536)
    assert psutil.Process().memory_info().rss - before < 20 << 20


@pytest.mark.parametrize("cuts", [[], [5], [30, 31], list(range(0, 200, 7))])
def test_requests_before_a_bad_one_are_answered_first(serve: Callable[..., int], cuts: list[int]) -> None:
    port = serve()
    good = request("/slow", body=b"abcd") * 3
    for bad in (f"GET / HTTP/1.1\r\nx: {'a' * 40_000}\r\n\r\n".encode(), b"nonsense\r\n\r\n"):
        found = statuses(talk(port, *cut(good, cuts), bad))
        assert found[:3] == [200, 200, 200] and found[3:] in ([], [431], [400])


def test_what_is_no_http_is_refused_in_the_form_of_all_errors(serve: Callable[..., int]) -> None:
    answer = talk(serve(), b"\x16\x03\x01\r\n\r\n")
    assert statuses(answer) == [400]
    assert set(json.loads(answer.split(b"\r\n\r\n", 1)[1])) == {"error", "field"}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (b"", "http"),
        (b"POST / HTTP/1.1\r\nhos", "http"),
        (request(body=b"abc")[:-1], "body"),
        (request() + b"POST /", "http"),
    ],
)
def test_half_a_request_is_given_up(
    serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch, message: bytes, field: str
) -> None:
    """Also one of which a byte comes now and then, and whether or not a whole one came before."""
    monkeypatch.setattr(bounded_http, "SLOWEST", 0.4)
    port = serve()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(message)
        connection.settimeout(0.1)
        found = b""
        for _ in range(100):
            try:
                part = connection.recv(65536)
                found += part
                if not part:
                    break
            except TimeoutError:
                connection.sendall(b"x" if field == "http" and message else b"")
        else:
            raise AssertionError(f"still open, {found!r}")
    assert statuses(found) == [200] * message.count(b"abc") * (field == "http") + [408]
    assert json.loads(found.rsplit(b"\r\n\r\n", 1)[1])["field"] == field


def test_whoever_keeps_a_connection_and_asks_now_and_then_may(
    serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "SLOWEST", 0.2)
    with socket.create_connection(("127.0.0.1", serve()), timeout=20) as connection:
        for _ in range(4):
            connection.sendall(request("/slow"))
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            answer.read()  # whole, for the next answer begins behind it
            time.sleep(0.5)


def test_whoever_does_not_read_is_given_up(serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "SLOWEST", 0.3)
    with socket.create_connection(("127.0.0.1", serve()), timeout=20) as connection:
        connection.sendall(request("/big"))
        time.sleep(2.0)
        size = 0
        with pytest.raises(ConnectionResetError):
            while part := connection.recv(1 << 20):
                size += len(part)
            raise ConnectionResetError  # closed, which is as good
        assert size < len(BIG)


def test_beyond_the_file_descriptors_connections_are_refused_and_told_once(
    serve: Callable[..., int], lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = bounded()
    monkeypatch.setattr(kind, "most", 5)
    monkeypatch.setattr(kind.full, "_calm", 0.05)
    port = serve(kind)
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    for connection in held:
        connection.sendall(request())
        connection.recv(4096)
    for _ in range(20):
        answer = talk(port, last())
        assert statuses(answer) == [503] and b"retry-after: 1\r\n" in answer
        assert "all 5 connections are taken" in json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    for connection in held:
        connection.close()
    for _ in range(200):
        if statuses(talk(port, last())) == [200]:
            break
        time.sleep(0.02)
    time.sleep(0.1)
    assert statuses(talk(port, last())) == [200]
    time.sleep(0.1)
    first, second = [line["message"] for line in lines if line["logger"] == "serving.adapters.bounded_http"]
    assert first == "all 5 connections are taken, further ones are refused: raise the limit of open files"
    assert second.startswith("connections are free again") and "20 were refused" in second


def test_as_many_connections_as_there_are_file_descriptors_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http.resource, "getrlimit", lambda _: (64, 1024))
    assert 1 <= most_connections() < 64
    monkeypatch.setattr(bounded_http.resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert most_connections() > 1_000_000
