"""Cost model: end-to-end seconds of a request by its number of rows, measured at warm-up and then while serving.

The warm-up gives a curve, linear between the measured sizes, so the fixed cost of a request is never charged to its rows, and
later requests never remove a size from the curve. Each size class (a power of two) stores the ratios of its last requests to the
curve and uses their median: a stall (garbage collection, a stopped process) changes nothing, a lasting change takes effect after
three requests, and the cost of small requests says nothing about large ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

KEPT = 7  # measurements per size class; initially, three of them come from the warm-up
PRIOR = 3
RESERVE = 1.5  # times the spread of these measurements above their median is added as a reserve under load,
MIN_RESERVE, MAX_RESERVE = 1.05, 1.25  # bounds of the reserve, as a multiple of the usual cost of a request
HALF = 0.5  # of the cost of the smallest request is the minimum for any request
WITNESSES = 3  # this many consecutive requests that took longer prove that the remaining time is too short
APART = 0.9  # share of its time that a request must run alone in its class to count separately
FRESH = 2.0  # seconds for which such a proof is valid
AGAIN = 1.0  # seconds after which a size is retried although it seems too expensive, and at least
SHARE = 20  # times its estimated cost, so that retries take at most a twentieth of the time


class _SizeClass:
    """Measurements of requests whose numbers of rows differ by less than a factor of two."""

    def __init__(self) -> None:
        self.ratios = deque([1.0] * PRIOR, KEPT)  # measured seconds / seconds on the curve
        self.ratio = 1.0
        self.reserve = MAX_RESERVE
        self.witnesses: deque[tuple[int, float]] = deque(maxlen=WITNESSES)  # rows, seconds
        self.ended = float("-inf")  # end of the last request that did not overlap the previous one
        self.measured = float("-inf")
        self.tried = float("-inf")


class CostModel:
    """Expected seconds of a request by its number of rows. Not thread-safe: :class:`serving.admission.Admission` takes the lock.

    Args:
        curve: (rows, seconds) measured at warm-up; if empty, every cost is unknown and counts as 0.
    """

    def __init__(self, curve: Sequence[tuple[int, float]] = ()) -> None:
        self._sizes: list[int] = []
        self._seconds: list[float] = []
        for rows, seconds in sorted(curve):  # more rows never cost less
            self._sizes.append(rows)
            self._seconds.append(max(seconds, self._seconds[-1] if self._seconds else 0.0))
        self._classes: dict[int, _SizeClass] = {}

    def add(self, rows: int, seconds: float, now: float) -> None:
        """Add one measured request that ended at ``now``, on the caller's monotonic clock.

        Concurrent requests count as one, the fastest of them: one stall slows down all of them.
        """
        size_class = self._class(rows)
        expected = self._on_curve(rows)
        ratio = seconds / expected if expected > 0 else 1.0
        if now - APART * seconds >= size_class.ended or not size_class.witnesses:
            size_class.witnesses.append((rows, seconds))
            size_class.ratios.append(ratio)
            size_class.ended = now
        else:
            if ratio < size_class.ratios[-1]:
                size_class.witnesses[-1], size_class.ratios[-1] = (rows, seconds), ratio
        ordered = sorted(size_class.ratios)
        size_class.ratio = ordered[len(ordered) // 2]
        if len(ordered) == KEPT:
            size_class.reserve = min(max(1 + RESERVE * (ordered[-1] / size_class.ratio - 1), MIN_RESERVE), MAX_RESERVE)
        size_class.measured = size_class.tried = now

    def seconds(self, rows: int) -> float:
        """Expected seconds of a request with this many rows; 0 before anything was measured."""
        return self._on_curve(rows) * self._class(rows).ratio

    def least(self) -> float:
        """Minimum seconds that any request needs, however few rows it has."""
        quickest = min((size_class.ratio for size_class in self._classes.values()), default=1.0)
        return HALF * self._seconds[0] * min(quickest, 1.0) if self._seconds else 0.0

    def at_most(self, rows: int) -> float:
        """Seconds that almost no request with this many rows exceeds, except for stalls."""
        return self.seconds(rows) * self._class(rows).reserve

    def too_little(self, rows: int, left: float, now: float) -> bool:
        """Whether measurements prove that ``left`` seconds are too short: the last requests of some size class, none of
        them larger (a larger one counts proportionally), all took longer, and the last of them was recent."""
        for number in range(rows.bit_length() + 1):
            size_class = self._classes.get(number)
            if size_class is None or len(size_class.witnesses) < WITNESSES or now - size_class.measured >= FRESH:
                continue
            if all(seconds * min(1.0, rows / size) > left for size, seconds in size_class.witnesses):
                return True
        return False

    def try_again(self, rows: int, left: float, needed: float, now: float) -> bool:
        """Whether a request that seems to need more time than it has may run as a retry, to check whether that is still true.

        Retries get rarer as the remaining time shrinks: with a tenth of the needed time, one every ten seconds.
        """
        size_class = self._class(rows)
        if now - size_class.tried < max(AGAIN * needed / left, SHARE * needed):
            return False
        size_class.tried = now
        return True

    def _class(self, rows: int) -> _SizeClass:
        number = rows.bit_length()
        size_class = self._classes.get(number)
        if size_class is None:
            size_class = self._classes[number] = _SizeClass()
        return size_class

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
