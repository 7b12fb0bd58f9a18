"""Fields of hashes kept in this process, and dropped when Redis reports that a hash has changed (client-side caching).

Redis remembers the keys that a connection has read. When one of them is written, deleted or expires, Redis sends its name over this
connection, before the answer to any command that it executes later. So after an answer, what is kept is what the store had when it
executed the command. Each request reads over this connection; if it breaks, all that was kept goes with it.
"""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

Command = tuple[bytes | str | int, ...]
Name = str | tuple[str, ...]

KEPT = 1 << 15  # names in each of two generations
ATTEMPTS = 3  # exchanges of one request, if names that it needs change while it reads
_MISSING = object()


class TrackedFields:
    """One field of each of many hashes, by the names of the hashes.

    Args:
        connection: an open redis-py connection of protocol 3; it belongs to this object.
        command: the command that reads the field of a name.
        name_of: the name of a key; None for a key that is not kept.
        kept: maximum number of names in a generation: the older of two is dropped when the younger one is full.

    Raises:
        RedisError: the server cannot track keys, or does not answer.
    """

    def __init__(
        self,
        connection: Any,
        command: Callable[[Name], Command],
        name_of: Callable[[bytes], Name | None],
        kept: int = KEPT,
    ) -> None:
        self._connection, self._command, self._name_of, self._most = connection, command, name_of, kept
        self._young: dict[Name, Any] = {}
        self._old: dict[Name, Any] = {}
        self._changed: set[Name] = set()
        connection._parser.set_invalidation_push_handler(self._invalidated)
        self._poll = _poll_of(connection)
        connection.send_command("CLIENT", "TRACKING", "ON")
        connection.read_response()

    def read(
        self, names: Sequence[Name], commands: Sequence[Command], timeout: float
    ) -> tuple[list[Any], list[Any]] | None:
        """Fields of ``names``, and the answers of ``commands``, as of one instant or later. None if names that are needed change
        all the time.

        Raises:
            TimeoutError: the store has not responded after ``timeout`` seconds. The object can then not be used again.
            RedisError: the connection broke, or the server refused a command; likewise.
        """
        end = time.monotonic() + timeout
        while self._has_news():
            self._connection.read_response(push_request=True)
        for _ in range(ATTEMPTS):
            self._changed.clear()
            values, missing = self._kept(names)
            answers = self._answers([*commands, *map(self._command, missing)], end)
            if missing:
                read = dict(zip(missing, answers[len(commands) :], strict=True))
                values = [read[n] if value is _MISSING else value for n, value in zip(names, values, strict=True)]
                self._keep({name: value for name, value in read.items() if name not in self._changed})
            if not self._changed or self._changed.isdisjoint(names):
                return values, answers[: len(commands)]
        return None

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _answers(self, commands: Sequence[Command], end: float) -> list[Any]:
        connection = self._connection
        if not commands:  # an answer is needed, because it comes after the names that have changed
            commands = [("PING",)]
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        answers = []
        for _ in commands:
            if not connection.can_read(max(end - time.monotonic(), 0.0)):
                raise TimeoutError
            answers.append(connection.read_response())
        return answers

    def _has_news(self) -> bool:
        """Whether names may have changed since the last request. Those that are not read now arrive before the next answer."""
        if self._poll is not None and not self._poll.poll(0):  # reading from an empty socket takes ten times longer
            return False
        return bool(self._connection.can_read(0))

    def _kept(self, names: Sequence[Name]) -> tuple[list[Any], list[Name]]:
        """What is kept of ``names``, and the names, without repeats, of which nothing is."""
        try:
            return list(map(self._young.__getitem__, names)), []
        except KeyError:
            pass
        get = self._young.get
        values = [get(name, _MISSING) for name in names]
        missing: dict[Name, None] = {}
        for place, value in enumerate(values):
            if value is _MISSING:
                name = names[place]
                if name in self._old:
                    values[place] = self._old[name]
                    self._keep({name: values[place]})
                else:
                    missing[name] = None
        return values, list(missing)

    def _keep(self, values: dict[Name, Any]) -> None:
        if len(self._young) + len(values) > self._most:
            self._young, self._old = {}, self._young
        self._young |= values

    def _invalidated(self, message: Sequence[Any]) -> None:
        keys = message[1]
        if keys is None:  # the store was emptied
            self._changed.update(self._young, self._old)
            self._young.clear()
            self._old.clear()
            return
        for key in keys:
            if (name := self._name_of(key)) is not None:
                self._changed.add(name)
                self._young.pop(name, None)
                self._old.pop(name, None)


def _poll_of(connection: Any) -> select.poll | None:
    """What tells whether a connection has bytes to read; None for an encrypted one, which may have read them already."""
    if isinstance(connection._sock, ssl.SSLSocket):
        return None
    poll = select.poll()
    poll.register(connection._sock, select.POLLIN)
    return poll
