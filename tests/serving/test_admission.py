"""Who gets in, what extra work is granted, and in which order it goes under load."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import RESPONSE_LATENCY_S, WINDOW, Admission
from serving.cost import FRESH, WITNESSES, CostModel
from serving.deadline import Deadline
from thinktwice.errors import OverloadedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock, workers: int = 1, queue: int = 2) -> Admission:
    return Admission(workers=workers, queue=queue, clock=clock)


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


CURVE = [(1, 0.001), (100, 0.005), (1000, 0.041)]  # 1 ms and 40 us a row


def warm(clock: Clock, workers: int = 1, queue: int = 2, **more: Any) -> Admission:
    """It has learned that 100 rows take five milliseconds."""
    admission = Admission(workers=workers, queue=queue, clock=clock, **more)
    admission.warmed_up(CURVE)
    return admission


def ask(admission: Admission, clock: Clock, rows: int, left: float, queued: float = 0.0) -> bool:
    """Whether a request with so much time left on its way back is let in."""
    try:
        admission.admit(Deadline(clock.now, clock.now + left + RESPONSE_LATENCY_S), rows, queued)
    except OverloadedError as error:
        assert error.status == 503
        return False
    return True


def test_an_idle_server_refuses_only_what_is_proved_to_be_late() -> None:
    clock = Clock()
    admission = warm(clock)
    for _ in range(WITNESSES):
        assert ask(admission, clock, 100, 0.0045), "no request has taken longer yet"
        clock.now += 0.005
        admission.finished(100, 0.005, 0.0)
    assert not ask(admission, clock, 100, 0.0045)
    assert not ask(admission, clock, 500, 0.0045), "more rows take no less"
    assert ask(admission, clock, 100, 0.0051)
    assert ask(admission, clock, 64, 0.0045), "what 100 rows took proves little about 64"
    clock.now += FRESH
    assert ask(admission, clock, 100, 0.0045), "that was long ago"


def test_nothing_is_let_in_whose_time_is_over() -> None:
    clock = Clock()
    admission = warm(clock)
    for _ in range(10):
        clock.now += 100
        assert not ask(admission, clock, 1, -1e-6)
        with pytest.raises(
            OverloadedError, match=r"^no time is left before the deadline: try again later, or set a longer deadline$"
        ) as caught:
            admission.refuse_hopeless(Deadline(clock.now - 2, clock.now - 1))
        assert caught.value.retry_after < 0.01, "how long ago its time was over says nothing about the server"
    admission.refuse_hopeless(Deadline(clock.now, clock.now + RESPONSE_LATENCY_S + 0.0006))
    with pytest.raises(OverloadedError):
        admission.refuse_hopeless(Deadline(clock.now, clock.now + RESPONSE_LATENCY_S + 0.0004))


def test_under_load_the_estimate_decides_and_a_size_is_tried_again() -> None:
    clock = Clock()
    admission = warm(clock)
    admission.enter()
    admission.enter()  # one waits behind the one that is decided about
    assert ask(admission, clock, 100, 0.0045), "the first of its size"
    admission.finished(100, 0.005, 0.0)
    assert not ask(admission, clock, 100, 0.0045)
    assert not ask(admission, clock, 100, 0.00524), "a reserve is kept"
    assert ask(admission, clock, 100, 0.00626)
    clock.now += 1.2
    assert not ask(admission, clock, 100, 0.0005), "a tenth of its time is hardly worth a try"
    assert ask(admission, clock, 100, 0.006)
    assert not ask(admission, clock, 100, 0.006), "not at once again"
    clock.now += 20
    assert ask(admission, clock, 100, 0.0005)


def test_a_refusal_says_what_it_is_about() -> None:
    clock = Clock()
    admission = warm(clock, queue=9)
    for _ in range(3):
        admission.enter()
    ask(admission, clock, 100, 0.001)
    with pytest.raises(
        OverloadedError, match=r"^12 ms are left before the deadline and the answer needs about 53: "
    ) as caught:
        admission.admit(Deadline(clock.now, clock.now + 0.012), 1000, 0.0) or admission.admit(
            Deadline(clock.now, clock.now + 0.012), 1000, 0.0
        )
    assert caught.value.retry_after == pytest.approx(0.0412, abs=1e-3)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-5, 10.0)), max_size=200), st.integers(1, 5000))
def test_a_size_is_told_by_its_own_measurements_alone(measured: list[tuple[int, float]], rows: int) -> None:
    cost, alone = CostModel(CURVE), CostModel(CURVE)
    now = 0.0
    for size, seconds in measured:
        now += seconds
        cost.add(size, seconds, now)
        if size.bit_length() == rows.bit_length():
            alone.add(size, seconds, now)
    assert cost.seconds(rows) == alone.seconds(rows)
    assert cost.seconds(rows) > 0


@given(st.integers(1, 1000), st.integers(0, 5000), st.integers(1, 1000))
def test_small_requests_say_nothing_about_large_ones(small: int, many: int, large: int) -> None:
    """A night of one-row probes, each of which has the fixed cost of a request."""
    cost = CostModel(CURVE)
    before = cost.seconds(large)
    if small.bit_length() != large.bit_length():
        for number in range(min(many, 50)):
            cost.add(small, 0.1, 0.2 * number)
        assert cost.seconds(large) == before


@given(
    st.integers(1, 1000), st.floats(0.2, 5.0), st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.01, 60.0)
)
def test_stalls_teach_nothing_and_lasting_changes_are_believed(
    rows: int, factor: float, stalls: list[bool], stall: float
) -> None:
    """As long as fewer than half of a few requests are stalled, the estimate stays within what the others took."""
    cost = CostModel(CURVE)
    usual = cost.seconds(rows)
    now, real = 0.0, 0
    for stalled in stalls:
        if stalled and real < 2:
            continue
        seconds = usual * factor + (stall if stalled else 0.0)
        real = 0 if stalled else real + 1
        now += seconds
        cost.add(rows, seconds, now)
        assert min(usual, usual * factor) * 0.999 <= cost.seconds(rows) <= max(usual, usual * factor) * 1.001
    for _ in range(4):
        now += usual * factor
        cost.add(rows, usual * factor, now)
    assert cost.seconds(rows) == pytest.approx(usual * factor)


def test_requests_at_work_at_the_same_time_share_one_stall() -> None:
    cost = CostModel(CURVE)
    for number in range(16):
        cost.add(100, 0.605 + 0.001 * number, 0.61 + 0.001 * number)
    assert cost.seconds(100) == pytest.approx(0.005)
    assert not cost.too_little(100, 0.2, 0.63)


@given(st.integers(1, 8), st.integers(9, 100), st.integers(101, 4000))
def test_the_curve_is_a_line_between_what_was_measured_and_goes_on_like_its_end(a: int, b: int, c: int) -> None:
    cost = CostModel([(c, 0.05), (a, 0.001), (b, 0.002)])
    for rows, seconds in ((a, 0.001), (b, 0.002), (c, 0.05)):
        assert cost.seconds(rows) == pytest.approx(seconds)
    assert cost.seconds(c + (c - b)) == pytest.approx(0.05 + 0.048)
    assert CostModel([(a, 0.001)]).seconds(c) == 0.001, "one size says nothing about the cost of a row"
    assert CostModel([(a, 0.002), (b, 0.001)]).seconds(b) == 0.002, "more rows never cost less"
    assert CostModel().seconds(b) == 0.0


def arrive(admission: Admission, clock: Clock, waits: list[float], gap: float = 0.0) -> list[bool]:
    """Requests that waited so long, each when the one before it has been done for ``gap`` seconds; whether each got paths."""
    granted = []
    for wait in waits:
        clock.now += gap
        granted.append(granted_paths(admission, clock, wait))
        clock.now += 0.005
        admission.finished(100, 0.005, 0.0)
    return granted


def granted_paths(admission: Admission, clock: Clock, wait: float) -> bool:
    return admission.admit(Deadline(clock.now - wait, clock.now + 10), 100, wait)


def test_who_had_to_wait_gets_no_extra_paths() -> None:
    clock = Clock()
    admission = warm(clock)
    assert all(arrive(admission, clock, [0.0005] * 100))
    assert arrive(admission, clock, [0.0029, 0.0031, 0.02, 0.0005]) == [True, False, False, True]
    assert admission.waiting_share() == pytest.approx(2 / 104)
    clock.now += WINDOW
    assert admission.waiting_share() == 0.0


def test_what_passed_while_nobody_was_at_work_is_no_wait() -> None:
    clock = Clock()
    admission = warm(clock)
    assert all(arrive(admission, clock, [0.0005] * 100))
    assert arrive(admission, clock, [0.004, 0.004, 0.02], gap=0.003) == [True, True, False]


def test_nobody_gets_extra_paths_while_others_stand_in_line() -> None:
    clock = Clock()
    admission = warm(clock)
    admission.enter()
    assert granted_paths(admission, clock, 0.0)
    admission.enter()
    assert not granted_paths(admission, clock, 0.0)
    admission.leave()
    assert granted_paths(admission, clock, 0.0)


def test_a_caller_that_never_pauses_is_no_load() -> None:
    clock = Clock()
    admission = warm(clock)
    assert all(arrive(admission, clock, [0.0008] * 500))
    assert admission.waiting_share() == 0.0


def test_a_clock_that_is_off_is_no_queue() -> None:
    clock = Clock()
    admission = warm(clock)
    assert all(arrive(admission, clock, [3.0] * 300)), "every caller seems to have sent three seconds ago"
    assert not any(arrive(admission, clock, [3.05] * 120)), "and now they do wait"


def test_less_than_a_millisecond_is_the_network_and_shedding_can_be_off() -> None:
    clock = Clock()
    quick = Admission(workers=1, queue=2, clock=clock)
    assert [granted_paths(quick, clock, wait) for wait in (0.0, 0.0009, 0.0011)] == [True, True, False]
    never = warm(clock, shed=False)
    assert all(arrive(never, clock, [0.0, *[0.5] * 100]))
    assert never.waiting_share() > 0.9


def test_extra_paths_are_not_counted_as_the_cost_of_an_answer() -> None:
    clock = Clock()
    admission = warm(clock)
    for _ in range(10):
        clock.now += 0.05
        admission.finished(100, 0.05, 0.04)
    assert ask(admission, clock, 100, 0.0101)
    assert not ask(admission, clock, 100, 0.0099)
