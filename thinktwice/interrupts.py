"""Ctrl-C and SIGTERM: both end a command in the same way, and none of them leaves behind what the command has started.

Python runs a signal handler between any two calls of the main thread, and a handler that raises interrupts whatever runs there: the
cleanup that another signal began, or the instant at which a process has started and nothing would end it yet.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 1.0  # seconds: signals that come this soon after one another ask for the same


class Interrupts:
    """The signals of the main thread. While ``held`` is above 0 they are kept and raise nothing."""

    def __init__(self) -> None:
        self.held = 0
        self._kept = False
        self._raised_at = -TOGETHER

    def handle(self, number: int, frame: object) -> None:
        """The signal handler."""
        if self.held:
            self._kept = True
        elif time.monotonic() - self._raised_at > TOGETHER:
            self._raise()

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was kept and none is held any more."""
        if self._kept and not self.held:
            self._raise()

    def _raise(self) -> None:
        self._kept, self._raised_at = False, time.monotonic()
        raise KeyboardInterrupt


_active: Interrupts | None = None


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Make SIGTERM raise KeyboardInterrupt as Ctrl-C does (schedulers and CI send it), also where a shell started this process with
    Ctrl-C ignored. Signals that come together raise it once, so that every ``finally`` runs to its end.

    Does nothing within another such block, and in a thread other than the main one, where no signal arrives.
    """
    global _active
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    if _active is not None:
        yield _active
        return
    _active = interrupts = Interrupts()
    previous = {}
    try:
        for number in SIGNALS:
            previous[number] = signal.getsignal(number)
            signal.signal(number, interrupts.handle)
        yield interrupts
    finally:
        interrupts.held += 1  # the first thing here, and no call: handlers run after calls
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _active = None
    interrupts.held = 0
    interrupts.check()


@contextmanager
def guarded(start: Callable[[], T], end: Callable[[T], object]) -> Iterator[T]:
    """What ``start`` returns, for the block. Afterwards ``end`` is called with it, at whatever moment a signal comes.

    A signal during either of them raises KeyboardInterrupt when it has returned; during ``end`` only if nothing else is raised.
    """
    with interruptible() as interrupts:
        started: list[T] = []
        failed = True
        try:
            interrupts.held += 1
            try:
                started.append(start())
            finally:
                interrupts.held -= 1
            interrupts.check()
            yield started[0]
            failed = False
        finally:
            interrupts.held += 1  # as above
            try:
                for one in started:
                    end(one)
            finally:
                interrupts.held -= 1
            if not failed:
                interrupts.check()
