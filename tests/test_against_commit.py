"""What two checkouts cost is compared turn by turn."""

from __future__ import annotations

import pytest

from benchmarks.against_commit import compare, main


def turn(ms: float, p99: float = 1.0) -> dict[str, dict[str, float]]:
    return {"a": {"cpu_ms_per_request": ms, "cpu_us_per_row": 10 * ms, "p99_ms": p99}}


def test_the_ratio_is_that_within_a_turn() -> None:
    """A machine that slows down between turns changes no ratio, and one disturbed turn of three does not either."""
    old, new = [turn(1.0), turn(10.0), turn(100.0)], [turn(1.02), turn(10.2), turn(500.0)]
    found = compare(old, new)["a"]
    assert found["ratio"] == 1.02
    assert (found["old_cpu_ms_per_request"], found["new_cpu_us_per_row"]) == (10.0, 102.0)


def test_a_commit_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COMMIT", raising=False)
    with pytest.raises(SystemExit):
        main([])
    assert "name a commit" in capsys.readouterr().err
