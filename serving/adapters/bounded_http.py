"""HTTP protocol of uvicorn with limits: on the size of a request's head, on the time to receive a request, on connections.

uvicorn limits none of these: a head grows in memory without bound, a partial request keeps a connection open forever, and when file
descriptors run out, the event loop closes new connections silently.
"""

from __future__ import annotations

import logging
import resource
from typing import Any

import psutil
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.protocol.errors import JSON, error_body
from serving.telemetry.state import Trouble

LARGEST_HEAD = 16 << 10  # bytes of a request line and its headers
SLOWEST = (
    10.0  # seconds from the first byte of a request (or from connecting) to the end of its head; the same for its body
)
LINGER = 1.0  # seconds before a refused connection is closed
SPARE = 16  # file descriptors reserved for other uses than connections
PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}

logger = logging.getLogger(__name__)


def most_connections() -> int:
    """Maximum number of connections for which this process has file descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, limit - psutil.Process().num_fds() - SPARE)


class BoundedHTTP(HttpToolsProtocol):
    """One connection.

    The class attributes are shared by all connections of the process; :func:`bounded` creates a class for one server.
    """

    most = 1 << 30
    full: Trouble

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._head = 0  # received bytes of the current head
        self._phase = "head"  # head, body, or answer (from the last byte of a request to the first of the next)
        self._since = self.loop.time()
        self._refused = False
        self._unread = False  # whether a response was unread at the last check
        self._watch: Any = None

    def connection_made(self, transport: Any) -> None:
        """See :class:`asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.full.met(
                f"all {self.most} connections are taken, further ones are refused: raise the limit of open files"
            )
            self._refuse(503, f"all {self.most} connections are taken: try again later", "", {"retry-after": "1"})
            return
        self._watch = self.loop.call_later(SLOWEST, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)
        self.full.not_met()

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._refused:
            return
        if self._phase == "answer":
            self._phase, self._since = "head", self.loop.time()
        if self._phase == "head":
            self._head += len(data)
        super().data_received(data)
        if self._phase == "head" and self._head > LARGEST_HEAD:
            self._refuse_head()

    def on_message_begin(self) -> None:
        """A request begins, possibly pipelined after another."""
        super().on_message_begin()
        self._phase = "head"

    def on_headers_complete(self) -> None:
        """The head of a request is complete."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > LARGEST_HEAD:
            self._refuse_head()
            return
        self._phase, self._since, self._head = "body", self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body was received."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A body is complete."""
        self._phase = "answer"
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP in the common error format."""
        self._refuse(400, "the request is not valid HTTP: correct its framing", "http")

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: no upgrade is supported, and any client may request one."""

    def _refuse_head(self) -> None:
        text = f"the request line and headers are too large, at most {LARGEST_HEAD} bytes are accepted: send fewer"
        self._refuse(431, text, "headers")

    def _check_progress(self) -> None:
        """Check whether receiving the current request, or reading a response, has taken too long."""
        now, late = self.loop.time(), self._since + SLOWEST
        if self._phase != "answer" and now >= late and not (self._phase == "body" and self.pipeline):
            if self._phase == "head":
                self._refuse(408, f"no request came within {SLOWEST:.0f} s: send it at once", "http")
            else:
                self._refuse(408, f"the body did not come within {SLOWEST:.0f} s: send it at once", "body")
            return
        unread = self.transport.get_write_buffer_size() > 0
        if self._phase == "answer" and unread and self._unread:
            self.transport.abort()
            return
        self._unread = unread
        wait = late - now if self._phase != "answer" else SLOWEST
        self._watch = self.loop.call_later(max(wait, 0.1), self._check_progress)

    def _refuse(self, status: int, text: str, field: str, more: dict[str, str] | None = None) -> None:
        """Refuse the current request and close the connection; earlier requests are answered first."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if (
            self.cycle is not None
            and not self.cycle.response_complete
            and (self._phase != "body" or self.cycle.response_started)
        ):
            self.cycle.keep_alive = False
            return
        body = error_body(text, field)
        headers = {"content-type": JSON, "content-length": str(len(body)), "connection": "close", **(more or {})}
        lines = [
            f"HTTP/1.1 {status} {PHRASES[status]}",
            *(f"{name}: {value}" for name, value in headers.items()),
            "",
            "",
        ]
        self.transport.write("\r\n".join(lines).encode() + body)
        # Discard further data for a moment: closing a connection with unread data resets it, and the response is lost.
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER, self.transport.close)


def bounded() -> type[BoundedHTTP]:
    """A protocol class for one server."""

    class Bounded(BoundedHTTP):
        most = most_connections()
        full = Trouble(logger, "connections are free again, after {seconds} s in which {times} were refused")

    return Bounded
