"""When a request must be answered."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.deadline import LONGEST_MS, Deadline, header_deadline_ms
from thinktwice.errors import RequestError


@given(st.floats(-LONGEST_MS, LONGEST_MS), st.sampled_from(["{}", " {}", "{} ", "+{}"]))
def test_every_number_is_a_deadline(value: float, form: str) -> None:
    text = form.format(abs(value) if "+" in form else value)  # -0.0 has a sign too
    assert header_deadline_ms({"x-deadline-ms": text}) == pytest.approx(float(text))


@given(st.text(max_size=50).filter(lambda text: not text.strip().isascii() or not text.strip()))
def test_text_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^header X-Deadline-Ms must be a number of milliseconds") as caught:
        header_deadline_ms({"x-deadline-ms": text})
    assert (caught.value.field, caught.value.status) == ("x-deadline-ms", 400)


@pytest.mark.parametrize(
    "text", ["abc", "nan", "inf", "-inf", "", "1_000", "0x10", "1e400", "1e10", "5 ms", "1,000", "٣", "1000,1"]
)
def test_what_is_not_a_number_of_milliseconds_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="X-Deadline-Ms"):
        header_deadline_ms({"x-deadline-ms": text})


def test_without_the_header_there_is_none() -> None:
    assert header_deadline_ms({}) is None


def test_the_sooner_limit_holds_and_both_count_from_the_sending() -> None:
    body = Deadline(100.0, 100.5)
    assert Deadline.of(None, body) is body
    assert Deadline.of(200, body) == Deadline(100.0, 100.2)
    assert Deadline.of(900, body) == body
    assert body.left(100.2) == pytest.approx(0.3)
    alone = Deadline.of(200, None)
    assert alone is not None and alone.ends - alone.sent == pytest.approx(0.2)
    assert abs(alone.sent - time.monotonic()) < 60
