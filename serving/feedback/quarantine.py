"""Quarantine of invalid events: one line of JSON each, with the reason, next to the log. Nothing is dropped silently."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import orjson

from thinktwice.errors import ResourceError
from thinktwice.files import full_disk_named

FILE = "quarantine.jsonl"
LONGEST = 4096  # characters of the value that are stored
MAX_BYTES = 256 << 20  # size after which only the reason is stored


class Quarantine:
    """Appends to the quarantine file. Thread-safe.

    Attributes:
        number: values quarantined since it was opened.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / FILE, threading.Lock()
        self.number = 0

    def add(self, values: Sequence[tuple[str, object]]) -> None:
        """Quarantine values, given as (reason, value).

        Raises:
            ResourceError: the file cannot be written.
        """
        with self._lock:
            size = self._path.stat().st_size if self._path.exists() else 0
            lines = [_line(why, None if size > MAX_BYTES else value) for why, value in values]
            try:
                with full_disk_named(self._path):
                    file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
                    try:
                        view = memoryview(b"".join(lines))
                        while view:
                            view = view[os.write(file, view) :]
                        os.fsync(file)
                    finally:
                        os.close(file)
            except OSError as error:
                raise ResourceError(
                    f"{self._path} cannot be written ({error.strerror or error}): make room there, or allow this user to write there"
                ) from error
            self.number += len(values)


def _line(why: str, value: object) -> bytes:
    text = (
        value if isinstance(value, str) else orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    )
    return orjson.dumps({"reason": why, "value": text[:LONGEST]}) + b"\n"


def num_quarantined(folder: Path) -> int:
    """Number of values in the quarantine of a log."""
    path = folder / FILE
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
