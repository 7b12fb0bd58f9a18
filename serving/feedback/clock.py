"""A clock that does not jump: what the wall clock said at the start, and the time that has really passed since.

A wall clock that is set by an hour would close an hour of windows at once. The difference is worked off slowly instead, so that a clock
that was wrong at the start is right after a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_NS = 1_000_000_000  # a difference that a clock does not get by itself between two looks
SLEW = 0.1  # share of the passed time by which the clock is corrected at most


def _passed_ns() -> int:
    """Time that has passed, also while the machine was suspended."""
    boot = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(boot)


class SteadyClock:
    """Microseconds of UTC that never fall.

    Args:
        start: an instant that has passed already: the clock begins behind it.

    Attributes:
        jumps: how often the wall clock was found to have jumped.
    """

    def __init__(
        self, start: int = 0, wall: Callable[[], int] = time.time_ns, passed: Callable[[], int] = _passed_ns
    ) -> None:
        self._wall, self._passed = wall, passed
        self._last_wall, self._last_passed = wall(), passed()
        self._now = max(self._last_wall, start * 1000)
        self.jumps = 0

    def now(self) -> int:
        """The time, in microseconds."""
        wall, passed = self._wall(), self._passed()
        elapsed = max(0, passed - self._last_passed)
        if abs((wall - self._last_wall) - elapsed) > JUMP_NS:
            self.jumps += 1
        self._last_wall, self._last_passed = wall, passed
        most = int(elapsed * SLEW)
        self._now += elapsed + min(most, max(-most, wall - self._now - elapsed))
        return self._now // 1000
