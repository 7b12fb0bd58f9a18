"""A/A experiments through the whole decision: checks, looks, guardrails and all."""

from __future__ import annotations

import math

import pytest

from tests.experiment.evidence import evidence
from tests.experiment.files import experiment
from thinktwice.experiment.decision import Verdict, decide

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_a_promotion_or_roll_back_of_equal_arms_is_rare() -> None:
    file = experiment(
        coverage=1.0,
        horizon={"days": 10, "looks": 10},
        minimum={"days": 1, "units": 500},
        guardrails=[{"metric": "error_rate", "worse": "increase", "margin": 0.002}],
    )
    runs, ended = 300, 0
    for seed in range(runs):
        history: list[Verdict] = []
        for day in range(1, 11):
            history.append(decide(file, evidence(file, day, units=1000, seed=seed), history))
        ended += any(v.decision.final for v in history)
        assert not any(c.passed is False for v in history for c in v.checks)
    assert ended / runs < 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
