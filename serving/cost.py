"""What a request costs: seconds of the whole path by its number of rows, measured at the warm-up and then while serving.

The warm-up gives a curve, a line between the sizes it measured, so the fixed cost of a request is never charged to its rows, and
nothing that is served later makes the curve forget a size. Every size class (a power of two) keeps how its last requests compare
with the curve, and the median counts: a stall (a garbage collection, a stopped process) changes nothing, a change that lasts is
believed after three requests, and what small requests cost says nothing about large ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

KEPT = 7  # measurements of a size class; at the start, three of them are those of the warm-up
PRIOR = 3
RESERVE = 1.5  # times the spread of these measurements above their median is kept in reserve under load,
MIN_RESERVE, MAX_RESERVE = 1.05, 1.25  # but at least and at most so much of what a request usually costs
HALF = 0.5  # of what the smallest request costs is what none can do without
WITNESSES = 3  # requests in a row that took longer than what is left prove that it is too little
APART = 0.9  # of its time that a request was alone at work in its class, for it to count by itself
FRESH = 2.0  # seconds for which they do
AGAIN = 1.0  # seconds after which a size is tried again although it seems too dear, and at least
SHARE = 20  # times what it seems to cost, so that such trials take a twentieth of the time at most


class _SizeClass:
    """Requests of up to twice as many rows as the smallest of them."""

    def __init__(self) -> None:
        self.ratios = deque([1.0] * PRIOR, KEPT)  # measured seconds over those of the curve
        self.ratio = 1.0
        self.reserve = MAX_RESERVE
        self.witnesses: deque[tuple[int, float]] = deque(maxlen=WITNESSES)  # rows, seconds
        self.ended = float("-inf")  # of the last that did not overlap the one before
        self.measured = float("-inf")
        self.tried = float("-inf")


class CostModel:
    """Expected seconds of a request by its number of rows. Not thread-safe: :class:`serving.admission.Admission` locks.

    Args:
        curve: (rows, seconds) of the warm-up; without any, every cost is unknown and counts as 0.
    """

    def __init__(self, curve: Sequence[tuple[int, float]] = ()) -> None:
        self._sizes: list[int] = []
        self._seconds: list[float] = []
        for rows, seconds in sorted(curve):  # more rows never cost less
            self._sizes.append(rows)
            self._seconds.append(max(seconds, self._seconds[-1] if self._seconds else 0.0))
        self._classes: dict[int, _SizeClass] = {}

    def add(self, rows: int, seconds: float, now: float) -> None:
        """Take in one measured request that ended ``now``, on the caller's monotonic clock.

        Requests that were at work at the same time count as one, the quickest of them: one stall slows all of them down.
        """
        found = self._class(rows)
        expected = self._on_curve(rows)
        ratio = seconds / expected if expected > 0 else 1.0
        if now - APART * seconds >= found.ended or not found.witnesses:
            found.witnesses.append((rows, seconds))
            found.ratios.append(ratio)
            found.ended = now
        else:
            if ratio < found.ratios[-1]:
                found.witnesses[-1], found.ratios[-1] = (rows, seconds), ratio
        ordered = sorted(found.ratios)
        found.ratio = ordered[len(ordered) // 2]
        if len(ordered) == KEPT:
            found.reserve = min(max(1 + RESERVE * (ordered[-1] / found.ratio - 1), MIN_RESERVE), MAX_RESERVE)
        found.measured = found.tried = now

    def seconds(self, rows: int) -> float:
        """Expected seconds of a request of so many rows; 0 before anything was measured."""
        return self._on_curve(rows) * self._class(rows).ratio

    def least(self) -> float:
        """Seconds below which no request has a chance, however few rows it has."""
        quickest = min((found.ratio for found in self._classes.values()), default=1.0)
        return HALF * self._seconds[0] * min(quickest, 1.0) if self._seconds else 0.0

    def at_most(self, rows: int) -> float:
        """Seconds that hardly any request of so many rows exceeds, stalls aside."""
        return self.seconds(rows) * self._class(rows).reserve

    def too_little(self, rows: int, left: float, now: float) -> bool:
        """Whether it is proved that ``left`` seconds do not suffice: the last requests of some size class, none of them larger
        (a larger one counts for its share), all took longer, and the last of them just now."""
        for number in range(rows.bit_length() + 1):
            found = self._classes.get(number)
            if found is None or len(found.witnesses) < WITNESSES or now - found.measured >= FRESH:
                continue
            if all(seconds * min(1.0, rows / size) > left for size, seconds in found.witnesses):
                return True
        return False

    def try_again(self, rows: int, left: float, needed: float, now: float) -> bool:
        """Whether a request that seems to need more than it has may be the one that tries whether that is still true.

        The less of its time it has, the rarer: one that has a tenth of it is tried every ten seconds.
        """
        found = self._class(rows)
        if now - found.tried < max(AGAIN * needed / left, SHARE * needed):
            return False
        found.tried = now
        return True

    def _class(self, rows: int) -> _SizeClass:
        number = rows.bit_length()
        found = self._classes.get(number)
        if found is None:
            found = self._classes[number] = _SizeClass()
        return found

    def _on_curve(self, rows: int) -> float:
        sizes, seconds = self._sizes, self._seconds
        if not sizes:
            return 0.0
        if rows <= sizes[0] or len(sizes) == 1:
            return seconds[0]
        right = min(bisect_right(sizes, rows), len(sizes) - 1)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (sizes[right] - sizes[left])
        return seconds[left] + slope * (rows - sizes[left])
