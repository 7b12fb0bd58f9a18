"""The client: what it sends, what it makes of every answer, and what it refuses to send."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.client import Client
from thinktwice.errors import OverloadedError, RequestError, ServerError


class Handler(BaseHTTPRequestHandler):
    """Answers with what the server was told to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["content-length"]))
        server.seen.append((self.path, {k.lower(): v.encode("latin-1") for k, v in self.headers.items()}, body))
        status, content, headers = server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        if server.hangs_up:
            self.close_connection = True  # without a word, as a server that restarts

    def log_message(self, *_: object) -> None:
        pass


GOOD = (200, b'{"predictions": [{"items": []}]}', {"x-served-arm": "t1", "x-request-id": "from the server"})


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    found: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.seen, found.answer, found.hangs_up = [], GOOD, False
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    server.seen, server.answer, server.hangs_up = [], GOOD, False
    with Client(f"http://127.0.0.1:{server.server_address[1]}") as found:
        yield found


def test_headers_and_answer(client: Client, server: Any) -> None:
    reply = client.predict({"user_id": "u"}, {"user_id": "v"}, unit="u-1", request_id="abc", deadline_ms=200)
    assert (reply.predictions, reply.request_id, reply.served_arm) == ([{"items": []}], "from the server", "t1")
    ((path, headers, body),) = server.seen
    assert path == "/v1/models/ctr:predict" and json.loads(body) == {"instances": [{"user_id": "u"}, {"user_id": "v"}]}
    assert headers["x-experiment-unit"] == b"u-1" and headers["x-request-id"] == b"abc"
    assert headers["x-deadline-ms"] == b"200" and headers["content-type"] == b"application/json"


def test_what_is_not_given_is_not_sent_and_ids_are_new(client: Client, server: Any) -> None:
    server.answer = (200, b'{"predictions": []}', {})
    first, second = client.predict({}), client.predict({})
    assert first.request_id != second.request_id and len(first.request_id) == 32 and first.served_arm is None
    for _, headers, _ in server.seen:
        assert not {"x-experiment-unit", "x-deadline-ms"} & headers.keys()


@settings(derandomize=True, deadline=None, max_examples=100)
@given(unit=st.text(max_size=300), deadline=st.floats())
def test_any_unit_and_deadline_is_sent_whole_or_refused(server: Any, unit: str, deadline: float) -> None:
    server.seen, server.answer, server.hangs_up = [], GOOD, False
    with Client(f"http://127.0.0.1:{server.server_address[1]}") as client:
        try:
            client.predict(
                {}, unit=unit, deadline_ms=deadline if abs(deadline) < 1e6 or not math.isfinite(deadline) else 1.0
            )
        except RequestError:
            odd = any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in unit)
            assert odd or not math.isfinite(deadline)
            assert server.seen == []
            return
    ((_, headers, _),) = server.seen
    assert headers["x-experiment-unit"].strip(b" \t") == unit.encode().strip(b" \t")
    assert math.isfinite(float(headers["x-deadline-ms"]))


@pytest.mark.parametrize(
    ("status", "content", "kind", "words"),
    [
        (400, b'{"error": "wrong k", "field": "instances[0].k"}', RequestError, "wrong k"),
        (413, b"not json", RequestError, "not json"),
        (429, b'{"error": "full", "field": ""}', OverloadedError, "full"),
        (503, b'{"error": "late", "field": ""}', OverloadedError, "late"),
        (504, b"[]", OverloadedError, r"\[\]"),
        (500, b'{"error": "failed", "field": ""}', ServerError, "status 500 .failed."),
        (302, b"", ServerError, "status 302"),
        (200, b"hello", ServerError, "did not return predictions"),
        (200, b"{}", ServerError, "did not return predictions"),
        (200, b"[1]", ServerError, "did not return predictions"),
    ],
)
def test_errors(client: Client, server: Any, status: int, content: bytes, kind: type[Exception], words: str) -> None:
    server.answer = (status, content, {"retry-after": "7"})
    with pytest.raises(kind, match=words) as found:
        client.predict({})
    if isinstance(found.value, OverloadedError):
        assert (found.value.status, found.value.retry_after) == (status, 7.0)
    if isinstance(found.value, RequestError):
        assert found.value.status == status and found.value.field in ("instances[0].k", "")
    server.answer = GOOD
    assert client.predict({}).served_arm == "t1", "the connection is usable afterwards"


def test_a_connection_that_the_server_ended_is_opened_again(client: Client, server: Any) -> None:
    server.hangs_up = True
    for _ in range(4):
        assert client.predict({}).served_arm == "t1"
    assert len(server.seen) == 4, "nothing is sent twice that was answered"


def test_nobody_there_and_no_address() -> None:
    with pytest.raises(ServerError, match="does not answer"):
        Client("http://127.0.0.1:9").predict({})
    for url in ("127.0.0.1:8080", "ftp://h", "http://", ""):
        with pytest.raises(ServerError, match="is not an address"):
            Client(url)


def test_a_name_of_its_own_for_model_and_unit(server: Any) -> None:
    server.seen, server.answer = [], GOOD
    with Client(f"http://127.0.0.1:{server.server_address[1]}/below/", model="m", unit_header="x-user") as client:
        client.predict({}, unit="u")
    ((path, headers, _),) = server.seen
    assert path == "/below/v1/models/m:predict" and headers["x-user"] == b"u"
