"""Open-loop load on a gateway: requests are sent when they are due, whatever became of those before."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

BODY = b'{"instances": [{"user_id": "u", "candidates": ["a"]}]}'


@dataclass
class Load:
    """What became of the requests: status by request id, 0 where the connection failed; units by request id."""

    statuses: dict[str, int] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    arms: dict[str, str] = field(default_factory=dict)

    def bad(self) -> dict[str, int]:
        return {request: status for request, status in self.statuses.items() if status != 200}


@contextmanager
def load(port: int, rate: float, unit: Callable[[int], str] = lambda n: f"user-{n % 500}") -> Iterator[Load]:
    """``rate`` requests a second while the block runs, over connections that are kept; all are answered when it ends."""
    found, stop = Load(), threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_drive(port, rate, unit, found, stop))
        except BaseException as error:  # noqa: BLE001 (shown by the test's thread)
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive() and not failure, failure


async def _drive(port: int, rate: float, unit: Callable[[int], str], found: Load, stop: threading.Event) -> None:
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    start, number = loop.time(), 0
    while not stop.is_set():
        wait = start + number / rate - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(_ask(port, unit(number), found, idle))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()


async def _ask(
    port: int, unit: str, found: Load, idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
) -> None:
    request = str(uuid.uuid4())
    found.units[request], found.statuses[request] = unit, 0
    try:
        connection = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return
    reader, writer = connection
    writer.write(
        f"POST /v1/models/ctr:predict HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\nx-request-id: {request}\r\n"
        f"x-experiment-unit: {unit}\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()
        + BODY
    )
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        await reader.readexactly(int(fields[b"content-length"]))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        return
    found.statuses[request] = int(head.split(b" ", 2)[1])
    found.arms[request] = fields.get(b"x-served-arm", b"").decode()
    if fields.get(b"connection") == b"close":
        writer.close()
    else:
        idle.append(connection)
