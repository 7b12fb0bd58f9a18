"""Ongoing problems, logged once when they begin and once when they have ended, not with every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

CALM = 2.0  # seconds without the problem after which it has ended


class Trouble:
    """One kind of problem. Thread-safe.

    Args:
        logger: receives the messages.
        over: message for its end, with the placeholders ``{seconds}`` (duration) and ``{times}`` (occurrences).
        calm: seconds without it after which it has ended.
        clock: monotonic seconds.
    """

    def __init__(
        self, logger: logging.Logger, over: str, *, calm: float = CALM, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger, self._over, self._calm, self._clock = logger, over, calm, clock
        self._lock = threading.Lock()
        self._since = self._last = 0.0
        self._times = 0

    @property
    def there(self) -> bool:
        """Whether the problem has begun and not ended."""
        return self._times > 0

    def met(self, text: str) -> None:
        """Record an occurrence; ``text`` describes it and is logged if the problem has just begun."""
        with self._lock:
            self._last = self._clock()
            self._times += 1
            if self._times > 1:
                return
            self._since = self._last
        self._logger.warning("%s", text)

    def not_met(self) -> None:
        """Record that the problem did not occur."""
        if not self._times:
            return
        with self._lock:
            now = self._clock()
            if not self._times or now - self._last < self._calm:
                return
            text = self._over.format(seconds=f"{now - self._since:.0f}", times=self._times)
            self._times = 0
        self._logger.warning("%s", text)
