"""TorchServe's front end as far as a worker sees it: messages in its form, one answer to each."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

INT = struct.Struct("!i")
END = INT.pack(-1)

Input = tuple[bytes, bytes, bytes]  # name, content type, value


def sized(text: bytes) -> bytes:
    return INT.pack(len(text)) + text


def load(model: str, folder: str) -> bytes:
    return b"".join(
        (
            b"L",
            sized(model.encode()),
            sized(folder.encode()),
            INT.pack(1),
            sized(b"handler.py"),
            END,
            sized(b""),
            b"\x01",
        )
    )


def predict(request: bytes, headers: Mapping[bytes, bytes], inputs: Sequence[Input]) -> bytes:
    parts = [b"I", sized(request)]
    for name, value in headers.items():
        parts += (sized(name), sized(value))
    parts.append(END)
    for name, kind, value in inputs:
        parts += (sized(name), sized(kind), sized(value))
    return b"".join((*parts, END, END))


@dataclass(frozen=True)
class Said:
    """What a worker answered."""

    request: bytes
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes


class FrontEnd:
    """One end of a connection to a worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")
        self.connection = connection

    def load(self, model: str, folder: str) -> None:
        self.connection.sendall(load(model, folder))
        assert self._int() == 200
        assert self._text() == b"loaded"
        assert self._int() == -1

    def ask(self, request: bytes, body: bytes, headers: Mapping[bytes, bytes] | None = None) -> Said:
        """Like a predict request on the v1 path."""
        return self.send(
            predict(request, {b"explain": b"False", **(headers or {})}, [(b"body", b"application/json", body)])
        )

    def send(self, message: bytes) -> Said:
        self.connection.sendall(message)
        return self.answer()

    def answer(self) -> Said:
        assert self._int() == 200
        self._text()
        request, kind, status, phrase = self._text(), self._text(), self._int(), self._text()
        headers = {self._text().decode(): self._text().decode() for _ in range(self._int())}
        assert headers.get("content-type", "") == kind.decode()
        body = self._text()
        assert self._int() == -1
        return Said(request, status, phrase.decode(), headers, body)

    def close(self) -> None:
        self._file.close()
        self.connection.close()

    def _int(self) -> int:
        found: int = INT.unpack(self._bytes(4))[0]
        return found

    def _text(self) -> bytes:
        return self._bytes(self._int())

    def _bytes(self, length: int) -> bytes:
        try:
            found = self._file.read(length)
        except ConnectionResetError:  # it was closed before all that had been sent was read
            found = b""
        if len(found) != length:
            raise EOFError
        return found
