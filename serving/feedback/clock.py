"""A clock that does not jump: the wall clock at the start plus the time elapsed since.

A wall clock that is changed by an hour would close an hour of windows at once. Instead, the difference is corrected gradually, so that
a clock that was wrong at the start becomes right after a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_NS = 1_000_000_000  # a difference larger than the drift between two readings
SLEW = 0.1  # maximum correction, as a share of the elapsed time


def _passed_ns() -> int:
    """Elapsed time, including time while the machine was suspended."""
    boot = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(boot)


class SteadyClock:
    """UTC microseconds that never decrease.

    Args:
        start: an instant in the past; the clock starts at this instant or later.

    Attributes:
        jumps: number of detected jumps of the wall clock.
    """

    def __init__(
        self, start: int = 0, wall: Callable[[], int] = time.time_ns, passed: Callable[[], int] = _passed_ns
    ) -> None:
        self._wall, self._passed = wall, passed
        self._last_wall, self._last_passed = wall(), passed()
        self._now = max(self._last_wall, start * 1000)
        self.jumps = 0

    def now(self) -> int:
        """Current time in microseconds."""
        wall, passed = self._wall(), self._passed()
        elapsed = max(0, passed - self._last_passed)
        if abs((wall - self._last_wall) - elapsed) > JUMP_NS:
            self.jumps += 1
        self._last_wall, self._last_passed = wall, passed
        max_correction = int(elapsed * SLEW)
        self._now += elapsed + min(max_correction, max(-max_correction, wall - self._now - elapsed))
        return self._now // 1000
