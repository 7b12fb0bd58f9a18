"""Fields of hashes kept in this process, and dropped when Redis reports that a hash has changed (client-side caching).

Redis remembers the keys that a connection has read. When one of them is written, deleted or expires, Redis sends its name over this
connection, before the answer to any command that it executes later. So after an answer, what is kept is what the store had when it
executed the command. Each request reads over this connection; if it breaks, all that was kept goes with it.
"""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.features.lookup import KeptItems, Places
from thinktwice.data.instant.kept import Marks

Command = tuple[bytes | str | int, ...]
Name = str | tuple[str, ...]

KEPT = 1 << 16  # names; all are dropped when there is no room for those of a request
ATTEMPTS = 3  # exchanges of one request, if names that it needs change while it reads
FIRST_SLOTS = 1 << 10
_ALWAYS = 0  # slot of the name that every request reads


class TrackedFields:
    """One field of each of many hashes, by the names of the hashes. Each name has a slot; each value that is read has a version of
    its own, 0 once it may have changed.

    Args:
        connection: an open redis-py connection of protocol 3; it belongs to this object.
        command: the command that reads the field of a name.
        name_of: the name of a key; None for a key that is not kept.
        always: the name that every request reads.
        kept: maximum number of names, unless one request has more.

    Raises:
        RedisError: the server cannot track keys, or does not answer.
    """

    def __init__(
        self,
        connection: Any,
        command: Callable[[Name], Command],
        name_of: Callable[[bytes], Name | None],
        always: Name,
        kept: int = KEPT,
    ) -> None:
        self._connection, self._command, self._name_of, self._most = connection, command, name_of, kept
        self._always = always
        self._last_version = 0
        self._changed: set[Name] = set()
        self._slots: dict[Name, int] = {}
        self._values: list[Any] = []
        self._versions = np.zeros(0, np.int64)
        self._catalogue: Mapping[str, int] | None = None  # whose places _slot_of describes
        self._slot_of = np.zeros(0, np.int64)
        self._drop()
        connection._parser.set_invalidation_push_handler(self._invalidated)
        self._poll = _poll_of(connection)
        connection.send_command("CLIENT", "TRACKING", "ON")
        connection.read_response()

    def read(
        self, names: Sequence[Name], commands: Sequence[Command], timeout: float, places: Places | None = None
    ) -> tuple[Any, KeptItems, list[Any]] | None:
        """The field of the name that is always read, those of ``names`` [n], and the answers of ``commands``, as of one instant or
        later. None if names that are needed change all the time.

        Args:
            places: of the names in a catalogue, so that no name needs to be looked up twice.

        Raises:
            TimeoutError: the store has not responded after ``timeout`` seconds. The object can then not be used again.
            RedisError: the connection broke, or the server refused a command; likewise.
        """
        end = time.monotonic() + timeout
        while self._has_news():
            self._connection.read_response(push_request=True)
        slots = self._slots_of(names, places)
        for _ in range(ATTEMPTS):
            self._changed.clear()
            versions = self._versions.take(slots)
            missing = self._missing(names, versions)
            answers = self._answers([*commands, *map(self._command, missing)], end)
            for name, value in zip(missing, answers[len(commands) :] if missing else (), strict=True):
                if name not in self._changed:
                    self._keep(self._slots[name], value)
            if not self._changed or (self._always not in self._changed and self._changed.isdisjoint(names)):
                kept = KeptItems(self._values, Marks(slots, self._versions.take(slots) if missing else versions))
                return self._values[_ALWAYS], kept, answers[: len(commands)]
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

    def _slots_of(self, names: Sequence[Name], places: Places | None) -> Any:
        """The slot [n] of each name."""
        if len(self._slots) + len(names) > self._most and len(self._slots) > 1:
            self._drop()
        if places is None:
            return np.fromiter(map(self._slot, names), np.int64, len(names))
        if places.catalogue is not self._catalogue:
            self._catalogue = places.catalogue
            self._slot_of = np.full(len(places.catalogue) + 1, -1)  # the last one is that of the place -1: never known
        slots = self._slot_of.take(places.index)
        new = slots < 0
        if np.count_nonzero(new):
            for n in np.flatnonzero(new).tolist():
                slots[n] = self._slot(names[n])
            self._slot_of[places.index] = slots
            self._slot_of[-1] = -1
        return slots

    def _slot(self, name: Name) -> int:
        """The slot of a name, which may be new."""
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = len(self._slots)
            self._values.append(None)
            if slot == len(self._versions):
                self._versions = np.concatenate([self._versions, np.zeros_like(self._versions)])
        return slot

    def _missing(self, names: Sequence[Name], versions: Any) -> list[Name]:
        """The names, without repeats, whose fields must be read."""
        always = [] if self._versions[_ALWAYS] else [self._always]
        if np.count_nonzero(versions) == len(versions):
            return always
        return [*always, *dict.fromkeys(names[n] for n in np.flatnonzero(versions == 0).tolist())]

    def _keep(self, slot: int, value: Any) -> None:
        self._last_version += 1
        self._values[slot], self._versions[slot] = value, self._last_version

    def _drop(self) -> None:
        """Forget all names. The values that requests still read are left as they are."""
        self._slots, self._values = {self._always: _ALWAYS}, [None]
        self._versions, self._catalogue = np.zeros(FIRST_SLOTS, np.int64), None

    def _invalidated(self, message: Sequence[Any]) -> None:
        keys = message[1]
        if keys is None:  # the store was emptied
            self._changed.update(self._slots)
            self._versions[:] = 0
            return
        for key in keys:
            if (name := self._name_of(key)) is not None:
                self._changed.add(name)
                if (slot := self._slots.get(name)) is not None:
                    self._versions[slot] = 0


def _poll_of(connection: Any) -> select.poll | None:
    """What tells whether a connection has bytes to read; None for an encrypted one, which may have read them already."""
    if isinstance(connection._sock, ssl.SSLSocket):
        return None
    poll = select.poll()
    poll.register(connection._sock, select.POLLIN)
    return poll
