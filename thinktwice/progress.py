"""Progress events of long work, for whoever watches.

The library reports, it never draws. When the environment variable ``THINKTWICE_PROGRESS`` names a file, every event is
appended to it as one JSON line; a watcher (the ``demo`` verb) tails the file and draws the bars. Otherwise events go nowhere.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

VARIABLE = "THINKTWICE_PROGRESS"
MIN_INTERVAL = 0.1  # seconds between two events of one bar

T = TypeVar("T")


def _emit(event: dict[str, Any]) -> None:
    path = os.environ.get(VARIABLE)
    if not path:
        return
    line = json.dumps({"at": time.time(), **event}) + "\n"
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(line)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark the start and the end (``done`` or ``failed``) of a named stage."""
    _emit({"stage": name, "event": "start"})
    try:
        yield
    except BaseException:
        _emit({"stage": name, "event": "failed"})
        raise
    _emit({"stage": name, "event": "done"})


def note(stage_name: str, text: str) -> None:
    """Attach a short finding to a stage, e.g. ``1,000,209 rows``; the watcher prints it behind the stage line."""
    _emit({"stage": stage_name, "event": "note", "text": text})


def track(items: Iterable[T], *, stage: str, total: int, label: str = "") -> Iterator[T]:
    """Yield ``items`` and report how many of ``total`` are done."""
    last = 0.0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= MIN_INTERVAL or done == total:
            last = now
            _emit({"stage": stage, "event": "progress", "done": done, "total": total, "label": label})
