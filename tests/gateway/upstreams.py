"""Small arms for tests: real sockets that answer, fail in every way that a server fails, and remember what reached them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Mode = Literal["ok", "slow", "500", "503", "reset"]
SLOW = 30.0  # seconds: longer than any test waits

ROUNDS = 5  # of the event loop, in which what was accepted is closed


class Upstream:
    """One arm on a port of loopback, with an event loop in a thread of its own.

    Attributes:
        mode: how predictions are answered from now on; a GET is always answered well, as by a server that is up and broken.
        heads: request line and headers of every prediction that came, as they came; the gateway's own check is not among them.
        bodies: their bodies.
    """

    def __init__(self, arm: str, names_itself: bool = True) -> None:
        self.arm, self._names_itself = arm, names_itself
        self.mode: Mode = "ok"
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def kill(self) -> None:
        """End as a killed process does: the port is closed and every connection is reset."""
        asyncio.run_coroutine_threadsafe(self._kill(), self._loop).result(10)

    def close(self) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _kill(self) -> None:
        if self._server is not None:
            self._server.close()
        for _ in range(ROUNDS):
            # A task that is cancelled before it begins would not close the socket that it was given, and a connection that
            # was accepted last is made known one round later.
            await asyncio.sleep(0)
            for writer in self._writers:
                writer.transport.abort()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        self._writers.clear()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)  # before its task begins, which may be cancelled before that
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        body = await reader.readexactly(int(fields.get(b"content-length", 0)))
        if head.startswith(b"GET "):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return True
        if fields.get(b"user-agent") != b"envoy/hc":
            self.heads.append(head)
            self.bodies.append(body)
        if self.mode == "reset":
            return False
        if self.mode == "slow":
            await asyncio.sleep(SLOW)
        status = {"500": b"500 Internal Server Error", "503": b"503 Service Unavailable"}.get(self.mode, b"200 OK")
        own = f"x-served-arm: {self.arm}\r\n".encode() if self._names_itself else b""
        content = json.dumps({"predictions": [{"arm": self.arm}]}).encode()
        writer.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n%s"
            % (status, own, len(content), content)
        )
        await writer.drain()
        return True


@contextmanager
def upstreams(*arms: str, names_itself: bool = True) -> Iterator[list[Upstream]]:
    """Arms that run while the block runs."""
    found = [Upstream(arm, names_itself) for arm in arms]
    try:
        yield found
    finally:
        for one in found:
            one.close()
