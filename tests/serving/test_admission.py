"""Who gets in, what extra work is granted, and in which order it goes under load."""

from __future__ import annotations

import numpy as np
import pytest

from serving.admission import FEWEST, RESERVE, WAY_BACK, Admission, CostModel
from serving.deadline import Deadline
from thinktwice.errors import OverloadedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, workers: int = 1, queue: int = 2) -> Admission:
    return Admission(workers=workers, queue=queue, shed_from=0.6, shed_all=0.85, clock=clock)


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


def arrive(admission: Admission, clock: Clock, waits: list[float], gap: float = 0.01) -> list[float]:
    """Requests one after the other that waited so long; the share each was granted."""
    shares = []
    for wait in waits:
        clock.now += gap
        shares.append(admission.path_share(wait, 100))
    return shares


def test_extra_paths_become_fewer_as_more_requests_wait_and_come_back() -> None:
    clock = Clock()
    admission = make(clock)
    for _ in range(20):
        admission.finished(100, 0.005, 0.0)
    assert set(arrive(admission, clock, [0.0005] * 200)) == {1.0}
    shares = []
    for waiting in (5, 8, 9, 10):
        shares.append(arrive(admission, clock, ([0.02] * waiting + [0.0005] * (10 - waiting)) * 20)[-1])
    assert shares[0] == 1.0 and shares[2] == shares[3] == 0.0
    assert shares == sorted(shares, reverse=True)
    assert arrive(admission, clock, [0.0005] * 200)[-1] == 1.0


def test_a_caller_that_never_pauses_is_no_load() -> None:
    clock = Clock()
    admission = make(clock)
    for _ in range(20):
        admission.finished(100, 0.005, 0.0)
    assert set(arrive(admission, clock, [0.0008] * 500, gap=0.005)) == {1.0}
    assert admission.waiting_share() == 0.0


def test_a_clock_that_is_off_is_no_queue() -> None:
    clock = Clock()
    admission = make(clock)
    for _ in range(20):
        admission.finished(100, 0.005, 0.0)
    assert set(arrive(admission, clock, [3.0] * 300)) == {1.0}, "every caller seems to have sent three seconds ago"
    assert arrive(admission, clock, [3.05] * 120)[-1] == 0.0, "and now they do wait"


def test_a_handful_of_requests_says_nothing_and_one_is_never_shed() -> None:
    clock = Clock()
    admission = make(clock)
    assert arrive(admission, clock, [0.0, *[0.5] * (FEWEST - 2)]) == [1.0] * (FEWEST - 1)
    never = Admission(workers=1, queue=1, shed_from=1.0, shed_all=1.0, clock=clock)
    assert set(arrive(never, clock, [0.0, *[0.5] * 100])) == {1.0}


def test_extra_paths_are_not_counted_as_the_cost_of_an_answer() -> None:
    admission = make(Clock())
    for _ in range(10):
        admission.finished(100, 0.05, 0.04)
    assert admission.cost.seconds(100) == pytest.approx(0.01)
