"""Trouble that begins and ends, told in the log once when it begins and once when it has ended, and not with every request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

CALM = 2.0  # seconds without trouble after which it has ended


class Trouble:
    """One kind of trouble. Threads may share it.

    Args:
        logger: where it is told.
        over: the sentence for its end, with ``{seconds}`` it lasted and ``{times}`` it was met.
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
        """Whether it has begun and not ended."""
        return self._times > 0

    def met(self, text: str) -> None:
        """It is there; ``text`` says what it is, and is logged if it has just begun."""
        with self._lock:
            self._last = self._clock()
            self._times += 1
            if self._times > 1:
                return
            self._since = self._last
        self._logger.warning("%s", text)

    def not_met(self) -> None:
        """It was not there this time."""
        if not self._times:
            return
        with self._lock:
            now = self._clock()
            if not self._times or now - self._last < self._calm:
                return
            text = self._over.format(seconds=f"{now - self._since:.0f}", times=self._times)
            self._times = 0
        self._logger.warning("%s", text)
