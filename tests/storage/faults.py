"""A proxy in front of an object store that answers chosen requests with a fault instead."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


class Seen(NamedTuple):
    """A request: method, path with the query, headers by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]


class Answer(NamedTuple):
    """Answer with this instead of the store's answer; ``hang`` never answers, ``cut`` forwards and breaks the store's answer in the middle,
    ``damage`` changes its first byte."""

    status: int = 0
    code: str = ""
    message: str = "told by the test"
    hang: bool = False
    cut: bool = False
    reset: bool = False
    damage: bool = False


Plan = Callable[[Seen], Answer | None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        parts = urlsplit(target)
        self.target = (str(parts.hostname), int(parts.port or 80))
        self.plan: Plan = lambda _: None
        self.drop, self.damage = "", False
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def handle_error(self, *_: object) -> None:
        """A client that goes away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_any(self) -> None:
        seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        body = self.rfile.read(int(seen.headers.get("content-length", 0)))
        with self.server.lock:
            self.server.seen.append(seen)
            answer = self.server.plan(seen)
        if answer is not None and answer.hang:
            self.server.stop.wait(30)
            self.close_connection = True
        elif answer is not None and answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif answer is not None and answer.status:
            text = (
                f"<Error><Code>{answer.code}</Code><Message>{answer.message}</Message></Error>" if answer.code else ""
            )
            self.reply(answer.status, {"content-type": "application/xml"}, text.encode(), False)
        else:
            self.forward(seen, body, answer or Answer())

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

    def forward(self, seen: Seen, body: bytes, fault: Answer) -> None:
        upstream = http.client.HTTPConnection(*self.server.target, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect", self.server.drop):
                    upstream.putheader(name, value)
            if self.server.damage and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            content = answer.read()
            if fault.damage and content:
                content = bytes([content[0] ^ 1]) + content[1:]
            self.reply(answer.status, headers, content, fault.cut)
        finally:
            upstream.close()

    def reply(self, status: int, headers: dict[str, str], body: bytes, cut: bool) -> None:
        self.send_response_only(status)
        if not any(name.lower() == "content-length" for name in headers):
            headers = {**headers, "content-length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Proxy:
    """The address of the proxy, what it saw, and the plan of its faults."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.address = f"http://127.0.0.1:{server.server_address[1]}"

    def plan(self, plan: Plan) -> None:
        self._server.plan = plan
        self._server.seen.clear()

    @property
    def seen(self) -> list[Seen]:
        return self._server.seen

    def drop(self, header: str) -> None:
        """Forward requests without this header."""
        self._server.drop = header

    def damage(self) -> None:
        """Change the first byte of every body on its way to the store."""
        self._server.damage = True


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    server = _Server(target)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield Proxy(server)
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()


def first(count: int, answer: Answer, wanted: Callable[[Seen], bool] = lambda _: True) -> Plan:
    """The first ``count`` wanted requests get ``answer``."""
    left = [count]

    def plan(seen: Seen) -> Answer | None:
        if wanted(seen) and left[0] > 0:
            left[0] -= 1
            return answer
        return None

    return plan
