"""What TorchServe's front end and a worker say to each other over their socket (TorchServe 0.12: nothing of it will change any more).

The front end sends one message and waits for its answer before it sends the next. All numbers are four bytes, big endian; texts and
bodies come behind their length. TorchServe's own reader asks the socket for every number by itself and keeps every field of a form,
so that one request can hold a worker for a minute; this one takes what is there and keeps what it needs.
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
MAX_HEADERS = 256  # of a request that are kept
MAX_NAME = 1 << 16  # bytes of a header that are kept
INT = struct.Struct("!i")
ALIKE = 64  # inputs in a row with the same lengths, from which on such are stepped over together
MAX_STEPS = 2000  # further inputs, after which a message ends where nothing more comes
QUIET = 0.02  # seconds without a byte at the end of a message: the front end waits for the answer before it sends more
TAIL = INT.pack(END) * 2  # the last bytes of a message


class ConnectionEndedError(Exception):
    """The front end has ended the connection."""


class ProtocolError(Exception):
    """What came is no message."""


@dataclass(frozen=True)
class Load:
    """The front end asks for a model, whose archive it has unpacked."""

    model: str
    folder: str


@dataclass(frozen=True)
class Predict:
    """A request.

    Attributes:
        id: the front end's own name for it, which the answer repeats.
        headers: by name as the front end gave it: those of the caller as he wrote them, and its own.
        body: of the request; None where it came as anything but one body (a form, or parameters in the address).
    """

    id: bytes
    headers: Mapping[bytes, bytes]
    body: bytes | None


class Reader:
    """Reads messages from a socket.

    Args:
        connection: blocking.
        begun: called when the first bytes of a message are there, before they are taken.
    """

    def __init__(self, connection: socket.socket, begun: Callable[[], None] = lambda: None) -> None:
        self._connection, self._begun = connection, begun
        self._buffer = bytearray()
        self._at = 0

    @property
    def between_messages(self) -> bool:
        """Whether nothing of a next message was read."""
        return self._at == len(self._buffer)

    def read(self) -> Load | Predict:
        """The next message.

        Raises:
            ConnectionEndedError: there will be none.
            ProtocolError: something else came.
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
        self._text()  # handler: the code of a worker is the one that is installed
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
        found: dict[bytes, bytes] = {}
        while (length := self._int()) != END:
            name, value = self._bytes(length), self._text()
            if len(found) < MAX_HEADERS and len(name) + len(value) <= MAX_NAME:
                found[name] = value
        return found

    def _body(self) -> bytes | None:
        """The value of the only input, which is called body; None where there are others."""
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
        """Leave the rest of the inputs behind. A form may have a million of them: those of one shape in a row cost next to
        nothing, and of others only so many are told apart."""
        buffer, at = self._buffer, self._at
        unpack = INT.unpack_from
        shape, alike, steps = (-1, -1, -1), 0, 0
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
            alike = alike + 1 if (name, kind, value) == shape else 0
            shape = (name, kind, value)
            if alike == ALIKE:
                at = _alike(shape).match(buffer, at).end()  # type: ignore[union-attr]
                alike, steps = 0, steps - ALIKE
        self._read_until_quiet()

    def _read_until_quiet(self) -> None:
        tail = bytes(self._buffer[-len(TAIL) :])
        self._buffer.clear()
        self._at = 0
        while tail != TAIL or select.select([self._connection], [], [], QUIET)[0]:
            tail = (tail + self._receive(1 << 20))[-len(TAIL) :]

    def _more(self, at: int) -> int:
        """Forget what was stepped over and read on; the place where the rest begins."""
        del self._buffer[:at]
        self._buffer += self._receive(1 << 20)
        return 0

    def _int(self) -> int:
        self._have(INT.size)
        (value,) = INT.unpack_from(self._buffer, self._at)
        self._at += INT.size
        found: int = value
        if found < END:
            raise ProtocolError(f"a length of {found}")
        return found

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

    def _receive(self, wanted: int = 0) -> bytes:
        part = self._connection.recv(max(CHUNK, min(wanted, 1 << 20)))
        if not part:
            raise ConnectionEndedError
        return part


@lru_cache(maxsize=16)
def _alike(shape: tuple[int, int, int]) -> re.Pattern[bytes]:
    """Any number of inputs of one shape."""
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
