"""Socket protocol between TorchServe's front end and a worker (TorchServe 0.12, the last release).

The front end sends one message and waits for its answer before it sends the next. All numbers are four bytes, big endian; texts and
bodies are preceded by their length. TorchServe's own reader makes a socket call per number and keeps every field of a form, so that
one request can block a worker for a minute; this reader reads in chunks and keeps only what it needs.
"""

from __future__ import annotations

import re
import select
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

LOAD, PREDICT = b"L", b"I"
END = -1
CHUNK = 1 << 16
MAX_HEADERS = 256  # kept per request
MAX_NAME = 1 << 16  # maximum bytes of a header that is kept
INT = struct.Struct("!i")
ALIKE = 64  # consecutive inputs with the same lengths after which further ones are skipped together
MAX_STEPS = 2000  # inputs to skip one by one; after that, the message ends when no more data arrives
QUIET = 0.02  # seconds without a byte at the end of a message: the front end waits for the answer before it sends more
TAIL = INT.pack(END) * 2  # the last bytes of a message


class ConnectionEndedError(Exception):
    """The front end closed the connection."""


class ProtocolError(Exception):
    """The received data is not a valid message."""


@dataclass(frozen=True)
class Load:
    """Request to load a model from its unpacked archive."""

    model: str
    folder: str


@dataclass(frozen=True)
class Predict:
    """A prediction request.

    Attributes:
        id: the id assigned by the front end, which the answer repeats.
        headers: the caller's headers, with names as sent, and those added by the front end.
        body: of the request; None if it is not a single body (a form, or query parameters).
    """

    id: bytes
    headers: Mapping[bytes, bytes]
    body: bytes | None


class Reader:
    """Reads messages from a socket.

    Args:
        connection: blocking.
        begun: called when the first bytes of a message have arrived, before they are read.
    """

    def __init__(self, connection: socket.socket, begun: Callable[[], None] = lambda: None) -> None:
        self._connection, self._begun = connection, begun
        self._buffer = bytearray()
        self._at = 0

    @property
    def between_messages(self) -> bool:
        """Whether no part of the next message has been read."""
        return self._at == len(self._buffer)

    def read(self) -> Load | Predict:
        """Read the next message.

        Raises:
            ConnectionEndedError: the connection was closed.
            ProtocolError: the data is not a valid message.
        """
        del self._buffer[: self._at]
        self._at = 0
        if not self._buffer:
            select.select([self._connection], [], [])
        self._begun()
        command = self._bytes(1)
        if command == PREDICT:
            return self._predict()
        if command == LOAD:
            return self._load()
        raise ProtocolError(f"unknown command {command!r}")

    def _load(self) -> Load:
        model, folder = self._text(), self._text()
        self._int()  # batch size
        self._text()  # handler: ignored, a worker runs the installed code
        self._int()  # GPU
        self._text()  # envelope
        self._bytes(1)
        return Load(model.decode(), folder.decode())

    def _predict(self) -> Predict:
        length = self._int()
        if length == END:
            raise ProtocolError("a batch of no requests")
        name = self._bytes(length)
        headers = self._headers()
        body = self._body()
        return Predict(name, headers, body)

    def _headers(self) -> dict[bytes, bytes]:
        headers: dict[bytes, bytes] = {}
        while (length := self._int()) != END:
            name, value = self._bytes(length), self._text()
            if len(headers) < MAX_HEADERS and len(name) + len(value) <= MAX_NAME:
                headers[name] = value
        return headers

    def _body(self) -> bytes | None:
        """The value of the input ``body`` if it is the only one, else None."""
        length = self._int()
        if length == END:
            self._end()
            return None
        name = self._bytes(length)
        self._text()
        value = self._text()
        if self._int() == END:
            self._end()
            return value if name == b"body" else None
        self._at -= INT.size
        self._step_over_inputs()
        return None

    def _end(self) -> None:
        if self._int() != END:
            raise ProtocolError("a batch of more than one request: the model asks for batches of one")

    def _step_over_inputs(self) -> None:
        """Skip the remaining inputs. A form may have a million of them: consecutive inputs of one shape are skipped at almost no
        cost, and the number of others that are parsed is limited."""
        buffer, at = self._buffer, self._at
        unpack = INT.unpack_from
        shape, repeats, steps = (-1, -1, -1), 0, 0
        while steps < MAX_STEPS:
            try:
                (name,) = unpack(buffer, at)
                if name == END:
                    self._at = at + INT.size
                    self._end()
                    return
                (kind,) = unpack(buffer, at + 4 + name)
                (value,) = unpack(buffer, at + 8 + name + kind)
            except struct.error:
                at = self._more(at)
                continue
            if name < 0 or kind < 0 or value < 0:
                raise ProtocolError("a negative length")
            end = at + 12 + name + kind + value
            if end > len(buffer):
                at = self._more(at)
                continue
            at, steps = end, steps + 1
            repeats = repeats + 1 if (name, kind, value) == shape else 0
            shape = (name, kind, value)
            if repeats == ALIKE:
                at = _alike(shape).match(buffer, at).end()  # type: ignore[union-attr]
                repeats, steps = 0, steps - ALIKE
        self._read_until_quiet()

    def _read_until_quiet(self) -> None:
        tail = bytes(self._buffer[-len(TAIL) :])
        self._buffer.clear()
        self._at = 0
        while tail != TAIL or select.select([self._connection], [], [], QUIET)[0]:
            tail = (tail + self._receive(1 << 20))[-len(TAIL) :]

    def _more(self, at: int) -> int:
        """Discard the skipped data and read more. Returns the offset of the remaining data."""
        del self._buffer[:at]
        self._buffer += self._receive(1 << 20)
        return 0

    def _int(self) -> int:
        self._have(INT.size)
        (value,) = INT.unpack_from(self._buffer, self._at)
        self._at += INT.size
        number: int = value
        if number < END:
            raise ProtocolError(f"a length of {number}")
        return number

    def _bytes(self, length: int) -> bytes:
        self._have(length)
        self._at += length
        return bytes(self._buffer[self._at - length : self._at])

    def _text(self) -> bytes:
        length = self._int()
        if length == END:
            raise ProtocolError("a text without a length")
        return self._bytes(length)

    def _have(self, length: int) -> None:
        missing = self._at + length - len(self._buffer)
        while missing > 0:
            part = self._receive(missing)
            self._buffer += part
            missing -= len(part)

    def _receive(self, missing: int = 0) -> bytes:
        part = self._connection.recv(max(CHUNK, min(missing, 1 << 20)))
        if not part:
            raise ConnectionEndedError
        return part


@lru_cache(maxsize=16)
def _alike(shape: tuple[int, int, int]) -> re.Pattern[bytes]:
    """Pattern for any number of inputs of one shape."""
    return re.compile(b"(?:" + b"".join(re.escape(INT.pack(n)) + b"[\\s\\S]{%d}" % n for n in shape) + b")*")


def loaded() -> bytes:
    """The answer to :class:`Load`."""
    text = b"loaded"
    return INT.pack(200) + INT.pack(len(text)) + text + INT.pack(END)


def answer(request: bytes, status: int, phrase: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The answer to one request."""
    kind = headers.get("content-type", "").encode()
    reason = phrase.encode()
    parts = [INT.pack(200), INT.pack(0), _sized(request), _sized(kind), INT.pack(status), _sized(reason)]
    parts.append(INT.pack(len(headers)))
    for name, value in headers.items():
        parts += (_sized(name.encode()), _sized(value.encode()))
    parts += (INT.pack(len(body)), body, INT.pack(END))
    return b"".join(parts)


def _sized(text: bytes) -> bytes:
    return INT.pack(len(text)) + text
