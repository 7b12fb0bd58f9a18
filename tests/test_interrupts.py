"""Ctrl-C and SIGTERM: what was started is ended at whatever moment they come, however many they are."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thinktwice import interrupts
from thinktwice.interrupts import Interrupts, guarded, interruptible

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The handlers are as before, whatever happened. A server that another test keeps running has a block of its own."""
    monkeypatch.setattr(interrupts, "_active", None)
    before = [signal.getsignal(number) for number in BOTH]
    yield
    assert [signal.getsignal(number) for number in BOTH] == before


def now(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM,), BOTH, BOTH[::-1], BOTH * 3])
def test_signals_that_come_together_interrupt_once(numbers: tuple[int, ...]) -> None:
    cleaned = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            now(*numbers)
        finally:
            now(*numbers)  # would cut this block short
            cleaned.append(True)
    assert cleaned == [True]


def test_a_later_signal_interrupts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "TOGETHER", 0.0)
    with interruptible():
        for number in BOTH:
            with pytest.raises(KeyboardInterrupt):
                now(number)


@pytest.mark.parametrize("outer", [False, True])
def test_a_signal_during_the_start_is_raised_when_the_end_is_certain(outer: bool) -> None:
    ended: list[str] = []

    def start() -> str:
        now(*BOTH)
        return "started"

    def run() -> None:
        with guarded(start, ended.append):
            ended.append("the block ran")

    with pytest.raises(KeyboardInterrupt):
        if outer:
            with interruptible():
                run()
        else:
            run()
    assert ended == ["started"]


def test_a_signal_during_the_end_is_raised_after_it() -> None:
    ended = []

    def end(name: str) -> None:
        now(*BOTH)
        ended.append(name)

    with pytest.raises(KeyboardInterrupt), guarded(lambda: "a", end):
        pass
    assert ended == ["a"]


def test_an_error_of_the_block_is_kept_when_a_signal_comes_during_the_end() -> None:
    ended = []

    def end(name: str) -> None:
        now(*BOTH)
        ended.append(name)

    with interruptible() as signals:
        with pytest.raises(ValueError, match="of the block"), guarded(lambda: "a", end):
            raise ValueError("of the block")
        with pytest.raises(KeyboardInterrupt):  # the signal is not lost either
            signals.check()
    assert ended == ["a"]


def test_what_does_not_start_is_not_ended() -> None:
    def start() -> str:
        raise ValueError("does not start")

    ended: list[str] = []
    with interruptible() as signals:
        with pytest.raises(ValueError, match="does not start"), guarded(start, ended.append):
            pass
        assert not ended and signals.held == 0


def test_nested_blocks_share_their_signals() -> None:
    with interruptible() as outer, interruptible() as inner:
        assert inner is outer
        with guarded(lambda: 0, lambda one: None):
            assert signal.getsignal(signal.SIGTERM) == outer.handle


def test_a_thread_is_never_interrupted_and_holds_nothing_back() -> None:
    seen: list[Interrupts] = []

    def run() -> None:
        with interruptible() as signals, guarded(lambda: 0, lambda one: None):
            seen.append(signals)

    with interruptible() as ours:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert seen and seen[0] is not ours and ours.held == 0


@example(moments=set(range(200)))
@given(moments=st.sets(st.integers(0, 80), min_size=1, max_size=3))
def test_what_was_started_is_ended_at_whatever_call_signals_come(moments: set[int]) -> None:
    started: list[int] = []
    ended: list[int] = []

    def start(number: int) -> int:
        started.append(sum([number]))
        return number

    def end(number: int) -> None:
        ended.append(sum([number]))

    def work() -> None:
        with interruptible(), guarded(lambda: start(1), end), guarded(lambda: start(2), end):
            sum(range(3))

    before = [signal.getsignal(number) for number in BOTH]
    interrupted = at_calls(work, moments, lambda: now(*BOTH))
    assert sorted(ended) == sorted(started)
    assert interrupted or ended == [2, 1]
    assert [signal.getsignal(number) for number in BOTH] == before


@pytest.mark.parametrize("moment", range(70))
def test_one_signal_at_every_call(moment: int) -> None:
    test_what_was_started_is_ended_at_whatever_call_signals_come.hypothesis.inner_test({moment})


def at_calls(work: Callable[[], None], moments: set[int], act: Callable[[], None]) -> bool:
    """Run ``work`` and act at these of the moments at which Python runs signal handlers, at the begin of functions and after calls of
    built-in ones, in ``thinktwice.interrupts``, the blocks of ``contextlib`` and here. Returns whether it was interrupted."""
    count = 0
    files = {interrupts.__file__, contextlib.__file__, __file__}

    def trace(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        if event not in ("call", "c_return") or frame.f_code.co_filename not in files:
            return
        if frame.f_code.co_name in ("at_calls", "now"):
            return
        count += 1
        if count - 1 in moments:
            sys.setprofile(None)
            try:
                act()
            finally:
                sys.setprofile(trace)

    sys.setprofile(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False
