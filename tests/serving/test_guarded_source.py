"""A store that hangs, fails and comes back: bounded time, bounded threads, and a rest for the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from serving.features.guarded_source import FAILURES_TO_OPEN, OPEN_SECONDS, GuardedSource, LookupFailedError
from serving.features.lookup import DirectReader, Entity, FeatureRow, Lookup
from serving.telemetry.state import CALM
from tests.serving.conftest import Lines
from thinktwice.errors import FeatureStoreError


class Source:
    """A store whose behaviour a test sets; hangs until ``gate`` opens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.asked: list[tuple[Entity, list[str]]] = []
        self.closed = False
        self.now: Callable[[float], list[FeatureRow] | None] | None = None
        self.asked_now = 0

    def names(self, entity: Entity) -> tuple[str, ...]:
        return ("age",) if entity == "user" else ("genre",)

    def fetch(self, entity: Entity, ids: Sequence[str], timeout: float | None = None) -> list[FeatureRow]:
        self.asked.append((entity, list(ids)))
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return [FeatureRow({self.names(entity)[0]: value}) for value in ids]

    def fetch_within(self, entity: Entity, ids: Sequence[str], timeout: float) -> list[FeatureRow] | None:
        self.asked_now += 1
        if self.now is None:
            return None
        return self.now(timeout)

    def close(self) -> None:
        self.closed = True


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def reason(guarded: GuardedSource, timeout: float | None = None) -> str:
    with pytest.raises(LookupFailedError) as caught:
        guarded.fetch("user", ["u"], timeout)
    return caught.value.reason


def test_a_store_that_answers() -> None:
    source = Source()
    guarded = GuardedSource(source, timeout=10)
    assert [row.values for row in guarded.fetch("item", ["a", "b"])] == [{"genre": "a"}, {"genre": "b"}]
    assert guarded.names("user") == ("age",)
    guarded.close()
    assert source.closed


def test_hanging_lookups_are_late_then_refused_without_a_thread_more() -> None:
    source = Source()
    source.gate.clear()
    guarded = GuardedSource(source, timeout=0.01, threads=2)
    assert [reason(guarded) for _ in range(4)] == ["timeout", "timeout", "bulkhead_full", "bulkhead_full"]
    assert len(source.asked) == 2
    assert sum(t.name.startswith("lookup") for t in threading.enumerate()) == 2
    source.gate.set()
    for _ in range(200):
        try:
            found = guarded.fetch("user", ["u"], 0.01)
            break
        except LookupFailedError:
            threading.Event().wait(0.01)
    assert found[0].values == {"age": "u"}
    guarded.close()


def test_no_time_left_asks_nobody() -> None:
    source = Source()
    guarded = GuardedSource(source, timeout=1)
    assert reason(guarded, 0.0) == reason(guarded, -1.0) == "timeout"
    assert source.asked == []
    guarded.close()


def test_a_store_that_fails_again_and_again_gets_a_rest_and_one_trial_at_a_time() -> None:
    source, clock = Source(), Clock()
    source.error = FeatureStoreError("down")
    guarded = GuardedSource(source, timeout=10, clock=clock)
    assert [reason(guarded) for _ in range(FAILURES_TO_OPEN + 2)] == ["error"] * FAILURES_TO_OPEN + ["circuit_open"] * 2
    assert len(source.asked) == FAILURES_TO_OPEN
    clock.now += OPEN_SECONDS + 0.01
    assert [reason(guarded) for _ in range(2)] == ["error", "circuit_open"]  # one probe, then open again
    clock.now += OPEN_SECONDS + 0.01
    source.error = None
    assert guarded.fetch("user", ["u"])[0].values == {"age": "u"}
    source.error = FeatureStoreError("down")
    assert [reason(guarded) for _ in range(FAILURES_TO_OPEN)] == ["error"] * FAILURES_TO_OPEN  # counted from the start
    guarded.close()


def test_a_store_that_fails_and_answers_again_is_told_twice_and_not_with_every_lookup(lines: Lines) -> None:
    source, clock = Source(), Clock()
    guarded = GuardedSource(source, timeout=10, clock=clock)
    for _ in range(2):
        source.error = FeatureStoreError("the file is broken")
        for _ in range(50):
            reason(guarded)
            clock.now += 0.3
        source.error = None
        clock.now += OPEN_SECONDS + CALM
        for _ in range(50):
            guarded.fetch("user", ["u"])
            clock.now += 0.3
    messages = [line["message"] for line in lines]
    assert len(messages) == 4
    assert messages[0] == messages[2] == "the file is broken: lookups get defaults until the online store answers"
    assert (
        messages[1].startswith("the online store answers again, after 1") and "lookups without an answer" in messages[1]
    )
    guarded.close()


def test_callers_in_a_hurry_say_nothing_about_the_store(lines: Lines) -> None:
    """However many of them, the store is asked for the others."""
    source = Source()
    guarded = GuardedSource(source, timeout=10, threads=FAILURES_TO_OPEN + 3)
    source.gate.clear()
    for _ in range(FAILURES_TO_OPEN + 2):
        assert reason(guarded, 0.005) == "timeout"
    source.gate.set()
    assert guarded.fetch("user", ["u"])[0].values == {"age": "u"}
    assert not [*lines]
    guarded.close()


def test_a_bug_during_a_trial_ends_the_trial() -> None:
    source, clock = Source(), Clock()
    source.error = FeatureStoreError("down")
    guarded = GuardedSource(source, timeout=10, clock=clock)
    for _ in range(FAILURES_TO_OPEN):
        reason(guarded)
    clock.now += OPEN_SECONDS + 0.01
    source.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        guarded.fetch("user", ["u"])
    source.error = None
    assert guarded.fetch("user", ["u"])[0].values == {"age": "u"}
    guarded.close()


def test_a_bug_in_a_source_is_no_slow_store() -> None:
    source = Source()
    source.error = ZeroDivisionError()
    guarded = GuardedSource(source, timeout=10)
    with pytest.raises(ZeroDivisionError):
        guarded.fetch("user", ["u"])
    source.error = None
    assert guarded.fetch("user", ["u"])  # and its thread is free again
    guarded.close()


def test_a_reader_answers_with_defaults_and_tells() -> None:
    source = Source()
    source.error = FeatureStoreError("down")
    told: list[tuple[Entity, str]] = []
    guarded = GuardedSource(source, timeout=10)
    reader = DirectReader(Lookup(guarded, on_default=lambda entity, why: told.append((entity, why))))
    features = reader.read("u", ["a", "b", "a"])
    assert features.user == {"age": None}
    assert list(features.items) == [{"genre": None}] * 3
    assert features.defaulted == ("user", "item")
    assert told == [("user", "error"), ("item", "error")]
    with pytest.raises(FeatureStoreError):
        DirectReader(Lookup(guarded)).read("u", ["a"])
    source.error = None
    source.asked.clear()
    assert reader.read(None, ["a", "b", "a"]).defaulted == ()
    assert source.asked == [("item", ["a", "b"])]
    reader.close()


def test_a_source_that_bounds_itself_needs_no_thread() -> None:
    source, before = Source(), set(threading.enumerate())
    source.now = lambda timeout: [FeatureRow({"age": timeout})]
    guarded = GuardedSource(source, timeout=10)
    assert guarded.fetch("user", ["u"], 0.5)[0].values == {"age": 0.5}
    assert source.asked == []
    assert set(threading.enumerate()) <= before
    source.now = lambda timeout: None  # it cannot promise now
    assert guarded.fetch("user", ["u"])[0].values == {"age": "u"}
    guarded.close()


def test_a_bounded_lookup_that_is_late_counts_and_a_trial_goes_the_long_way() -> None:
    source, clock = Source(), Clock()

    def late(timeout: float) -> list[FeatureRow]:
        raise TimeoutError

    source.now = late
    guarded = GuardedSource(source, timeout=10, clock=clock)
    assert [reason(guarded) for _ in range(FAILURES_TO_OPEN + 1)] == ["timeout"] * FAILURES_TO_OPEN + ["circuit_open"]
    assert source.asked == []
    clock.now += OPEN_SECONDS + 0.01
    assert guarded.fetch("user", ["u"])[0].values == {"age": "u"}
    assert source.asked_now == FAILURES_TO_OPEN
    guarded.close()


def test_no_time_is_left_after_a_bounded_lookup_gave_up() -> None:
    source = Source()
    source.now = lambda timeout: threading.Event().wait(0.02) or None
    guarded = GuardedSource(source, timeout=0.01)
    assert reason(guarded) == "timeout"
    assert source.asked == []
    guarded.close()
