"""Who gets in, what extra work is granted, and in which order it goes under load."""

from __future__ import annotations

import numpy as np
import pytest

from serving.admission import RESERVE, Admission, CostModel
from serving.deadline import Deadline
from thinktwice.errors import OverloadedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, workers: int = 1, queue: int = 2) -> Admission:
    return Admission(workers=workers, queue=queue, shed_from=0.8, shed_all=0.9, clock=clock)


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
    needed = RESERVE * 0.01
    admission.admit(Deadline(clock.now, clock.now + needed * 1.01), 100)
    with pytest.raises(OverloadedError, match="before the deadline") as caught:
        admission.admit(Deadline(clock.now, clock.now + needed * 0.99), 100)
    assert caught.value.status == 503
    with pytest.raises(OverloadedError, match=r"^0 ms are left"):
        admission.admit(Deadline(clock.now - 2, clock.now - 1), 1)


def test_extra_paths_become_fewer_with_load_and_come_back() -> None:
    clock = Clock()
    admission = make(clock, queue=100)
    assert admission.path_share() == 1.0
    shares = []
    for busy in (0.5, 0.84, 0.86, 0.88, 0.95):
        for _ in range(40):  # two seconds at that load
            clock.now += 0.05
            admission.finished(100, busy * 0.05, 0.0)
        shares.append(admission.path_share())
    assert shares[0] == 1.0
    assert shares[-1] == 0.0
    assert shares == sorted(shares, reverse=True) and 0 < shares[2] < 1
    clock.now += 2
    assert admission.path_share() == 1.0


def test_a_long_queue_stops_extra_paths_at_once() -> None:
    admission = make(Clock(), queue=4)
    for _ in range(3):
        admission.enter()
    assert admission.path_share() == 1.0
    admission.enter()
    assert admission.path_share() == 0.0


def test_extra_paths_are_not_counted_as_the_cost_of_an_answer() -> None:
    admission = make(Clock())
    for _ in range(10):
        admission.finished(100, 0.05, 0.04)
    assert admission.cost.seconds(100) == pytest.approx(0.01)
