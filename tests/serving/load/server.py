"""A small HTTP server whose behaviour a test sets: it stalls, lies, refuses or hangs up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import orjson

Behaviour = Callable[[int, bytes], Awaitable[tuple[int, dict[str, str], bytes] | None]]


def right(body: bytes, versions: tuple[str, ...] = ("v1",)) -> bytes:
    """The answer of a good predictor to a v1 body."""
    (request,) = orjson.loads(body)["instances"]
    items = request["candidates"]
    rows = [
        {"item_id": item, "probability": 1 / (place + 2), "rank": place + 1, "model_version": versions[0]}
        for place, item in enumerate(items)
    ]
    return orjson.dumps({"predictions": [{"items": rows, "model_version": versions[-1]}]})


async def good(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, right(body)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[tuple[str, list[bytes]]]:
    """Yields the address and the heads of all requests so far. None as an answer hangs up."""
    heads: list[bytes] = []
    ready = threading.Event()
    ends: list[Callable[[], object]] = []
    address: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                heads.append(head)
                answer = await behaviour(len(heads) - 1, body)
                if answer is None:
                    break
                status, headers, out = answer
                lines = [
                    f"HTTP/1.1 {status} X",
                    f"content-length: {len(out)}",
                    *(f"{k}: {v}" for k, v in headers.items()),
                ]
                writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + out)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        ready.set()
        await stop.wait()
        server.close()
        for _ in range(5):  # a task that is cancelled before it begins would not close its connection
            await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0], heads
    finally:
        ends[0]()
        thread.join(10)
