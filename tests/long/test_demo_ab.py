"""The demonstration as a user runs it: each of its three experiments ends as it should, with the true effect in its interval."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.gateways import need_envoy
from thinktwice.experiment.record import RECORD, DecisionRecord, decisions_of, read_lines, state_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_all_three_end_as_planted(tmp_path: Path) -> None:
    need_envoy()
    from demo.experiment.session import run_demo

    ends = run_demo(
        ["better", "worse", "same"], treatment="corrected", rate=80.0, seed=0, work=tmp_path, server="torchserve"
    )
    assert {run: seen.state.ended for run, seen in ends.items()} == {
        "better": "promote",
        "worse": "roll_back",
        "same": "stop",
    }
    for run, seen in ends.items():
        lines = read_lines(tmp_path / "experiments" / f"demo-{run}" / RECORD)
        assert state_of(lines).pending is None and isinstance(decisions_of(lines)[-1], DecisionRecord)
        page = (tmp_path / "reports" / f"demo-{run}.html").read_text()
        assert "true effect" in page and "<script" not in page
        assert seen.true_effect is not None and seen.true_effect.visits > 0
