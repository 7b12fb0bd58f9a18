"""The demonstration as a user runs it: each of its three experiments ends as it should, with the true effect in its interval."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.gateways import need_envoy
from thinktwice.experiment.record import RECORD, decisions_of, read_lines, replay, state_of
from thinktwice.release.champion import read_champion

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_all_three_end_as_planted(tmp_path: Path) -> None:
    need_envoy()
    from demo.experiment.session import run_demo

    work = tmp_path / "demo"
    ends = run_demo(
        ["better", "worse", "same"], treatment="corrected", rate=80.0, seed=0, work=work, server="torchserve"
    )
    assert {run: seen.state.ended for run, seen in ends.items()} == {
        "better": "promote",
        "worse": "roll_back",
        "same": "stop",
    }
    for run, seen in ends.items():
        lines = read_lines(work / "experiments" / f"demo-{run}" / RECORD)
        last = decisions_of(lines)[-1]
        assert state_of(lines).pending is None
        assert all(now == before for before, now in replay(decisions_of(lines)))
        effect, true = last.verdict.primary[0], seen.true_effect
        assert effect.relative_low is not None and effect.relative_high is not None and effect.boundary is not None
        assert true is not None and true.relative is not None and true.relative_se is not None and true.visits > 50
        # Both are estimates; four standard errors of the true one beside the interval.
        reach = 4 * true.relative_se
        assert effect.relative_low - reach <= true.relative <= effect.relative_high + reach
        page = (work / "reports" / f"demo-{run}.html").read_text()
        assert "true effect" in page and "<script" not in page
    promoted = read_lines(work / "experiments" / "demo-better" / RECORD)
    champion = read_champion(work / "state")
    assert champion is not None and champion.info.bundle_hash == state_of(promoted).file.treatments[0].bundle
