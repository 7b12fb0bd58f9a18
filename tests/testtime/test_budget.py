"""What a deadline leaves for extra rows."""

from __future__ import annotations

import pytest

from thinktwice.testtime.budget import RESERVE, extra_rows


def test_what_is_left_after_a_base_pass_in_whole_rows() -> None:
    assert extra_rows(left_ms=10.0, base_ms=5.0, row_ms=0.1) == int((10.0 - RESERVE * 5.0) / 0.1) == 40
    assert extra_rows(10.0, 5.0, 3.9) == 1
    assert extra_rows(10.0, 5.0, 4.1) == 0
    assert extra_rows(10.0, 0.0, 2.5) == 4


def test_nothing_under_overload() -> None:
    for left in (6.0, 5.0, 0.0, -3.0, -1e9):
        assert extra_rows(left, 5.0, 0.1) == 0


def test_more_time_never_means_fewer_rows() -> None:
    found = [extra_rows(left / 10, 2.0, 0.07) for left in range(200)]
    assert found == sorted(found) and found[0] == 0 and found[-1] > 200


@pytest.mark.parametrize("row_ms", [0.0, -1.0])
def test_a_row_that_was_never_measured_is_an_error(row_ms: float) -> None:
    with pytest.raises(ValueError, match=r"row_ms must be positive.*measure the cost of a row first"):
        extra_rows(10.0, 1.0, row_ms)
