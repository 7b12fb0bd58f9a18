"""When a request must be answered."""

from __future__ import annotations

import time

import pytest

from serving.deadline import Deadline, header_deadline_ms, waited

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("t=1789999999.75", 0.25),
        ("1789999999.75", 0.25),
        ("t=1789999999750", 0.25),
        ("t=1789999999750000", 0.25),
        ("t=1790000001", 0.0),  # the future
        ("t=1789999900", 0.0),  # too long ago: a wrong clock
        ("t=5", 0.0),
        ("nan", 0.0),
        ("t=inf", 0.0),
        ("yesterday", 0.0),
    ],
)
def test_time_in_the_queue(text: str, seconds: float) -> None:
    assert waited({"x-request-start": text}, lambda: NOW) == pytest.approx(seconds, abs=1e-6)


def test_without_the_header_nothing_was_waited() -> None:
    assert waited({}, lambda: NOW) == 0.0


@pytest.mark.parametrize(("text", "found"), [("50", 50.0), ("0", None), ("-3", None), ("x", None), ("nan", None)])
def test_deadline_of_a_header(text: str, found: float | None) -> None:
    assert header_deadline_ms({"x-deadline-ms": text}) == found


def test_the_sooner_limit_holds_and_both_count_from_the_sending() -> None:
    body = Deadline(100.0, 100.5)
    assert Deadline.of(None, body) is body
    assert Deadline.of(200, body) == Deadline(100.0, 100.2)
    assert Deadline.of(900, body) == body
    assert body.left(100.2) == pytest.approx(0.3)
    alone = Deadline.of(200, None)
    assert alone is not None and alone.ends - alone.sent == pytest.approx(0.2)
    assert abs(alone.sent - time.monotonic()) < 60
