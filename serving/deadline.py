"""When a request must be answered, counted from the moment its caller sent it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

START_HEADER = "x-request-start"
DEADLINE_HEADER = "x-deadline-ms"
MOST_WAITED = 60.0  # seconds; an older start is a wrong clock


@dataclass(frozen=True)
class Deadline:
    """``sent`` and ``ends`` on the monotonic clock, seconds."""

    sent: float
    ends: float

    @staticmethod
    def of(milliseconds: float | None, body: Deadline | None) -> Deadline | None:
        """The sooner of a request's own limit, counted from the sending of its body, and that of the body."""
        if milliseconds is None:
            return body
        sent = time.monotonic() if body is None else body.sent
        ends = sent + milliseconds / 1000
        return Deadline(sent, ends if body is None else min(ends, body.ends))

    def left(self, now: float) -> float:
        """Seconds that remain; negative when it is over."""
        return self.ends - now


def waited(headers: Mapping[str, str], clock: Callable[[], float] = time.time) -> float:
    """Seconds between the caller's sending and now, as ``X-Request-Start: t=<Unix seconds>`` tells; 0 without the header.

    Proxies write this header for just this purpose, in seconds, milliseconds or microseconds. TorchServe tells a worker
    nothing of the time a request stood in its queue, so without the header that time is not seen.
    A start in the future or long ago is a wrong clock and counts as now.
    """
    text = headers.get(START_HEADER, "").removeprefix("t=")
    try:
        value = float(text)
    except ValueError:
        return 0.0
    for unit in (1.0, 1e3, 1e6):
        if 1e9 <= value / unit < 1e10:
            found = clock() - value / unit
            return found if 0.0 < found <= MOST_WAITED else 0.0
    return 0.0


def header_deadline_ms(headers: Mapping[str, str]) -> float | None:
    """Milliseconds of ``X-Deadline-Ms``; None when it is absent or no positive number."""
    try:
        value = float(headers.get(DEADLINE_HEADER, ""))
    except ValueError:
        return None
    return value if 0 < value < 1e9 else None
