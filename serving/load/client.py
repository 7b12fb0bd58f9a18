"""A small HTTP/1.1 client with persistent connections and low overhead, so that it does not disturb the measured server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_HEAD = 64 << 10  # bytes of the head of a response


@dataclass(frozen=True)
class ClientResponse:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes


class BrokenConnectionError(Exception):
    """The server closed the connection or its response is not HTTP."""


@dataclass(frozen=True)
class Address:
    """Target address of requests."""

    host: str
    port: int
    path: str

    @staticmethod
    def of(url: str, path: str) -> Address:
        """The address of ``path`` on a server."""
        parts = urlsplit(url)
        return Address(parts.hostname or "", parts.port or 80, path)


class Client:
    """Connections to one address, kept open between requests."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes, headers: dict[str, str]) -> ClientResponse:
        """Send a body and read the response.

        Raises:
            BrokenConnectionError: there was no response.
        """
        reader, writer = await self._connection()
        try:
            writer.write(self._head(len(body), headers) + body)
            reply = await _read(reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            writer.close()
            raise BrokenConnectionError(str(error)) from error
        except BaseException:
            writer.close()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._free.append((reader, writer))
        return reply

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._free:
            writer.close()
        for _, writer in self._free:
            try:
                await writer.wait_closed()
            except OSError:
                continue  # already closed
        self._free.clear()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        try:
            return await asyncio.open_connection(self._address.host, self._address.port, limit=MAX_HEAD)
        except OSError as error:
            raise BrokenConnectionError(str(error)) from error

    def _head(self, length: int, headers: dict[str, str]) -> bytes:
        lines = [
            f"POST {self._address.path} HTTP/1.1",
            f"Host: {self._address.host}:{self._address.port}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _read(reader: asyncio.StreamReader) -> ClientResponse:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    headers = {}
    for line in head[1:]:
        name, sign, value = line.partition(":")
        if sign:
            headers[name.strip().lower()] = value.strip()
    return ClientResponse(status, headers, await reader.readexactly(int(headers["content-length"])))
