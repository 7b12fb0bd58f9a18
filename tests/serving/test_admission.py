"""Who gets in, what extra work is granted, and in which order it goes under load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.admission import RESERVE, WAY_BACK, WINDOW, Admission, CostModel
from serving.deadline import Deadline
from thinktwice.errors import OverloadedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, workers: int = 1, queue: int = 2) -> Admission:
    return Admission(workers=workers, queue=queue, clock=clock)


def test_cost_is_what_a_line_through_the_measurements_says() -> None:
    cost = CostModel()
    assert cost.seconds(100) == 0.0
    rng = np.random.default_rng(0)
    for rows in rng.integers(1, 500, 300):
        cost.add(int(rows), 0.002 + 0.00001 * rows + rng.normal(0, 1e-5))
    assert cost.seconds(100) == pytest.approx(0.003, rel=0.02)
    assert cost.seconds(1) == pytest.approx(0.002, rel=0.05)
    for _ in range(400):  # what was is forgotten
        cost.add(100, 0.030)
        cost.add(200, 0.050)
    assert cost.seconds(100) == pytest.approx(0.030, rel=0.05)


def test_cost_of_one_size_grows_in_proportion_and_never_shrinks() -> None:
    cost = CostModel()
    for _ in range(5):
        cost.add(100, 0.01)
    assert cost.seconds(100) == pytest.approx(0.01)
    assert cost.seconds(1000) == pytest.approx(0.1)
    assert cost.seconds(1) == pytest.approx(0.01)


def test_the_queue_is_bounded_and_places_come_back() -> None:
    admission = make(Clock())
    for _ in range(3):
        admission.enter()
    assert admission.waiting == 2
    with pytest.raises(OverloadedError, match="3 requests wait already") as caught:
        admission.enter()
    assert caught.value.status == 429
    admission.leave()
    admission.enter()
    assert admission.waiting == 2


def test_a_request_that_would_be_late_is_refused_before_any_work() -> None:
    clock = Clock()
    admission = make(clock)
    for rows in (100, 200) * 20:
        admission.cost.add(rows, rows * 1e-4)
    needed = RESERVE * 0.01 + WAY_BACK
    admission.admit(Deadline(clock.now, clock.now + needed * 1.01), 100)
    with pytest.raises(OverloadedError, match="before the deadline") as caught:
        admission.admit(Deadline(clock.now, clock.now + needed * 0.99), 100)
    assert caught.value.status == 503
    with pytest.raises(OverloadedError, match=r"^0 ms are left"):
        admission.admit(Deadline(clock.now - 2, clock.now - 1), 1)


def measured(clock: Clock, **more: Any) -> Admission:
    """It has learned that 100 rows take five milliseconds."""
    admission = Admission(workers=1, queue=2, clock=clock, **more)
    for _ in range(20):
        admission.finished(100, 0.005, 0.0)
    return admission


def arrive(admission: Admission, clock: Clock, waits: list[float], gap: float = 0.0) -> list[bool]:
    """Requests that waited so long, each when the one before it has been done for ``gap`` seconds; whether each got paths."""
    granted = []
    for wait in waits:
        clock.now += gap
        granted.append(admission.extra_paths(wait, 100))
        clock.now += 0.005
        admission.finished(100, 0.005, 0.0)
    return granted


def test_who_had_to_wait_gets_no_extra_paths() -> None:
    clock = Clock()
    admission = measured(clock)
    assert all(arrive(admission, clock, [0.0005] * 100))
    assert arrive(admission, clock, [0.0029, 0.0031, 0.02, 0.0005]) == [True, False, False, True]
    assert admission.waiting_share() == pytest.approx(2 / 104)
    clock.now += WINDOW
    assert admission.waiting_share() == 0.0


def test_what_passed_while_nobody_was_at_work_is_no_wait() -> None:
    clock = Clock()
    admission = measured(clock)
    assert all(arrive(admission, clock, [0.0005] * 100))
    assert arrive(admission, clock, [0.004, 0.004, 0.02], gap=0.003) == [True, True, False]


def test_nobody_gets_extra_paths_while_others_stand_in_line() -> None:
    admission = measured(Clock())
    admission.enter()
    assert admission.extra_paths(0.0, 100)
    admission.enter()
    assert not admission.extra_paths(0.0, 100)
    admission.leave()
    assert admission.extra_paths(0.0, 100)


def test_a_caller_that_never_pauses_is_no_load() -> None:
    clock = Clock()
    admission = measured(clock)
    assert all(arrive(admission, clock, [0.0008] * 500))
    assert admission.waiting_share() == 0.0


def test_a_clock_that_is_off_is_no_queue() -> None:
    clock = Clock()
    admission = measured(clock)
    assert all(arrive(admission, clock, [3.0] * 300)), "every caller seems to have sent three seconds ago"
    assert not any(arrive(admission, clock, [3.05] * 120)), "and now they do wait"


def test_less_than_a_millisecond_is_the_network_and_shedding_can_be_off() -> None:
    clock = Clock()
    quick = Admission(workers=1, queue=2, clock=clock)
    assert [quick.extra_paths(wait, 100) for wait in (0.0, 0.0009, 0.0011)] == [True, True, False]
    never = measured(clock, shed=False)
    assert all(arrive(never, clock, [0.0, *[0.5] * 100]))
    assert never.waiting_share() > 0.9


def test_extra_paths_are_not_counted_as_the_cost_of_an_answer() -> None:
    admission = make(Clock())
    for _ in range(10):
        admission.finished(100, 0.05, 0.04)
    assert admission.cost.seconds(100) == pytest.approx(0.01)
