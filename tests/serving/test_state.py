"""Trouble that begins and ends, and how often the log tells it."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from serving.telemetry.state import CALM, Trouble
from tests.serving.test_admission import Clock

STEPS = st.lists(st.tuples(st.floats(0, 3 * CALM), st.booleans()), max_size=60)


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@given(STEPS)
def test_one_line_when_it_begins_and_one_when_it_has_ended(steps: list[tuple[float, bool]]) -> None:
    clock, heard = Clock(), Heard()
    logger = logging.Logger("test")
    logger.addHandler(heard)
    trouble = Trouble(logger, "over after {times}", clock=clock)
    expected: list[str] = []
    last, times = 0.0, 0
    for pause, met in steps:
        clock.now += pause
        if met:
            if times == 0:
                expected.append("it is broken: 100 %")
            last, times = clock.now, times + 1
            trouble.met("it is broken: 100 %")
        else:
            if times and clock.now - last >= CALM:
                expected.append(f"over after {times}")
                times = 0
            trouble.not_met()
        assert trouble.there == (times > 0)
    assert heard.texts == expected
