"""Progress events of long work, for a watching process.

The library reports events and draws nothing. Stages start and end, make progress, and have notes (short) and messages
(whole sentences); a failed step leaves one record of its error. When the environment variable ``THINKTWICE_PROGRESS`` names
a file, every event is appended to it as one JSON line; a watcher (the ``demo`` command) tails the file and draws the bars.
Otherwise events are dropped.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from thinktwice.explain import error_record

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
    """Attach a short finding to a stage, e.g. ``1,000,209 rows``; the watcher prints it after the stage line."""
    _emit({"stage": stage_name, "event": "note", "text": text})


def tell(stage_name: str, text: str) -> None:
    """Report a whole sentence about a stage; the watcher prints it in full, on its own line."""
    _emit({"stage": stage_name, "event": "message", "text": text})


def repeat(event: dict[str, Any]) -> None:
    """Report an event that another process has recorded in a file of its own, with the instant at which it did."""
    _emit(event)


def recorded(step: Callable[..., T]) -> Callable[..., T]:
    """The same step, but an error that ends it is recorded as ``{type, message, own}``.

    The error is raised again, so the step fails as before. Without a watcher nothing is recorded.
    """

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> T:
        try:
            return step(*args, **kwargs)
        except BaseException as error:
            _emit({"stage": step.__name__, "event": "error", **error_record(error)._asdict()})
            raise

    run.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    return run


def track(items: Iterable[T], *, stage: str, total: int, label: str = "") -> Iterator[T]:
    """Yield ``items`` and report how many of ``total`` are done."""
    advance = counter(stage=stage, total=total, label=label)
    for item in items:
        yield item
        advance(1)


def counter(*, stage: str, total: int, label: str = "") -> Callable[[int], None]:
    """Returns a function that reports that so much more of ``total`` (steps, bytes) is done. A watcher tells the time left from the
    pace."""
    done, last = 0, 0.0

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        now = time.monotonic()
        if now - last >= MIN_INTERVAL or done >= total:
            last = now
            _emit({"stage": stage, "event": "progress", "done": done, "total": total, "label": label})

    return advance
