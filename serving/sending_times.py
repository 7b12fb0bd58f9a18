"""Sending times of requests from the header ``X-Request-Start: t=<Unix seconds>``, and the offset of the callers' clock.

Proxies set this header for this purpose, in seconds, milliseconds or microseconds. A wrong clock makes every request look late
(or early) while the server is idle. This is detected, reported in the log and in a metric, and corrected.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

HEADER = "x-request-start"
MAX_WAITED = 60.0  # seconds; an older start, or one as far in the future, is ignored
TOLERATED = 0.25  # seconds that a request may take from its caller to an idle server
ENOUGH = 20  # consecutive requests on an idle server that agree about the clock
DRIFT = 1e-3  # seconds that the clocks may drift apart with every request

Ignored = Literal["malformed", "too old", "in the future"]

logger = logging.getLogger(__name__)


class SendingTimes:
    """Reads the header. Thread-safe.

    Attributes:
        offset: seconds that the callers' clock is behind (negative: ahead); 0 while it is within tolerance.

    Args:
        on_ignored: called with the reason when a header is ignored.
        clock: Unix seconds.
    """

    def __init__(self, on_ignored: Callable[[Ignored], None], clock: Callable[[], float] = time.time) -> None:
        self._on_ignored, self._clock = on_ignored, clock
        self._lock = threading.Lock()
        self._off = False
        self._in_a_row = 0  # consecutive requests on an idle server that contradict the current offset
        self._least = 0.0  # smallest difference among them
        self.offset = 0.0

    def waited(self, headers: Mapping[str, str], *, idle: bool) -> float:
        """Seconds since a request was sent; 0 without the header.

        Args:
            headers: lower-case names.
            idle: whether the server was idle when the request arrived, so that it cannot have been queued.
        """
        text = headers.get(HEADER)
        if text is None:
            return 0.0
        difference = self._difference(text)
        if difference is None:
            return 0.0
        if idle:
            with self._lock:
                self._look_at_clock(difference)
        return max(difference - self.offset, 0.0)

    def _difference(self, text: str) -> float | None:
        try:
            value = float(text.removeprefix("t="))
        except ValueError:
            value = 0.0
        for unit in (1.0, 1e3, 1e6):
            if 1e9 <= value / unit < 1e10:
                break
        else:
            self._on_ignored("malformed")
            return None
        difference = self._clock() - value / unit
        if abs(difference) > MAX_WAITED:
            self._on_ignored("too old" if difference > 0 else "in the future")
            return None
        return difference

    def _look_at_clock(self, difference: float) -> None:
        if self._off and abs(difference - self.offset) <= TOLERATED:
            # No request arrives before it was sent, and clocks drift.
            self.offset = min(difference, self.offset + DRIFT)
            self._in_a_row = 0
            return
        if not self._off and abs(difference) <= TOLERATED:
            self._in_a_row = 0
            return
        self._least = min(difference, self._least) if self._in_a_row else difference
        self._in_a_row += 1
        if self._in_a_row < ENOUGH:
            return
        self._in_a_row = 0
        self._off = abs(self._least) > TOLERATED
        self.offset = self._least if self._off else 0.0
        if self._off:
            logger.warning(
                "X-Request-Start says that requests were sent %.2f s %s although this server is idle: the clock of the callers is "
                "off, and corrected by that until it is right",
                abs(self.offset),
                "ago" if self.offset > 0 else "in the future",
            )
        else:
            logger.warning("the clock of the callers is right again: X-Request-Start counts as it is")
