"""When callers sent their requests, and what is done about clocks that are off."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.sending_times import ENOUGH, MAX_WAITED, TOLERATED, SendingTimes
from tests.serving.conftest import Lines

NOW = 1_790_000_000.0


class Callers:
    """Requests that were sent some seconds ago, by clocks that are behind by ``offset``."""

    def __init__(self) -> None:
        self.ignored: Counter[Any] = Counter()
        self.now = NOW
        self.times = SendingTimes(lambda reason: self.ignored.update([reason]), lambda: self.now)

    def send(self, ago: float, offset: float = 0.0, *, idle: bool = True) -> float:
        self.now += 0.1
        return self.times.waited({"x-request-start": f"t={self.now - ago - offset:.6f}"}, idle=idle)


@pytest.mark.parametrize(
    ("text", "seconds", "ignored"),
    [
        ("t=1789999999.75", 0.25, None),
        ("1789999999.75", 0.25, None),
        ("t=1789999999750", 0.25, None),
        ("t=1789999999750000", 0.25, None),
        ("t=1790000001", 0.0, None),
        ("t=1789999900", 0.0, "too old"),
        ("t=1790000100", 0.0, "in the future"),
        ("t=5", 0.0, "malformed"),
        ("nan", 0.0, "malformed"),
        ("t=inf", 0.0, "malformed"),
        ("", 0.0, "malformed"),
        ("yesterday", 0.0, "malformed"),
    ],
)
def test_time_in_the_queue(text: str, seconds: float, ignored: str | None) -> None:
    callers = Callers()
    assert callers.times.waited({"x-request-start": text}, idle=False) == pytest.approx(seconds, abs=1e-6)
    assert callers.ignored == Counter([ignored] if ignored else [])


def test_without_the_header_nothing_was_waited() -> None:
    callers = Callers()
    assert callers.times.waited({}, idle=True) == 0.0
    assert not callers.ignored


@given(
    st.floats(-MAX_WAITED + 1, MAX_WAITED - 1).filter(lambda offset: abs(offset) > 2 * TOLERATED),
    st.lists(st.floats(0, 0.2), min_size=ENOUGH, max_size=60),
)
def test_a_clock_that_is_off_is_corrected(offset: float, waits: list[float]) -> None:
    """After some requests to an idle server, the estimate is the wait up to the shortest one."""
    callers = Callers()
    for wait in waits:
        callers.send(wait, offset)
    least = min(waits)
    assert callers.times.offset == pytest.approx(offset + least, abs=0.06)
    for wait in (0.2, 0.5, 0.9):
        assert callers.send(wait, offset, idle=False) == pytest.approx(max(wait - least, 0), abs=0.06)


@given(st.lists(st.floats(0.3, 50.0), max_size=100))
def test_a_queue_is_not_a_clock(waits: list[float]) -> None:
    """However long requests wait, as long as the server is busy."""
    callers = Callers()
    for wait in waits:
        assert callers.send(wait, idle=False) == pytest.approx(wait, abs=1e-5)
    assert callers.times.offset == 0.0


def test_some_late_requests_are_not_a_clock() -> None:
    callers = Callers()
    for _ in range(20):
        for _ in range(ENOUGH - 1):
            assert callers.send(3.0) == pytest.approx(3.0, abs=1e-5)
        assert callers.send(0.001) == pytest.approx(0.001, abs=1e-5)


def test_a_clock_is_told_once_when_it_is_off_and_once_when_it_is_right(lines: Lines) -> None:
    callers = Callers()
    for _ in range(100):
        callers.send(0.01, 1.0)
    for _ in range(100):
        callers.send(0.01, 1.1)  # it goes on drifting
    for _ in range(100):
        callers.send(0.01)
    assert callers.times.offset == 0.0
    first, second = lines
    assert "were sent 1.01 s ago although this server is idle" in first["message"]
    assert "is right again" in second["message"]
    assert {first["level"], second["level"]} == {"warning"}
    for _ in range(ENOUGH):
        callers.send(0.0, -5.0)
    assert "5.00 s in the future" in [*lines][-1]["message"]
