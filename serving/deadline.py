"""Deadlines of requests, counted from the time the caller sent them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from thinktwice.errors import RequestError

DEADLINE_HEADER = "x-deadline-ms"
LONGEST_MS = 1e9
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Deadline:
    """A deadline: ``sent`` and ``ends`` in seconds on the monotonic clock."""

    sent: float
    ends: float

    @staticmethod
    def of(milliseconds: float | None, body: Deadline | None) -> Deadline | None:
        """The earlier of a request's own limit, counted from when its body was sent, and that of the body."""
        if milliseconds is None:
            return body
        sent = time.monotonic() if body is None else body.sent
        ends = sent + milliseconds / 1000
        return Deadline(sent, ends if body is None else min(ends, body.ends))

    def left(self, now: float) -> float:
        """Remaining seconds; negative after the deadline."""
        return self.ends - now


def header_deadline_ms(headers: Mapping[str, str]) -> float | None:
    """Milliseconds of ``X-Deadline-Ms``, 0 or less if the caller has no time left; None without the header.

    Raises:
        RequestError: it is not a number.
    """
    text = headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    if NUMBER.fullmatch(text.strip()) is None or not abs(value := float(text)) <= LONGEST_MS:
        raise RequestError(
            f"header X-Deadline-Ms must be a number of milliseconds up to {LONGEST_MS:.0f}, not {text[:40]!r}",
            field=DEADLINE_HEADER,
        )
    return value
