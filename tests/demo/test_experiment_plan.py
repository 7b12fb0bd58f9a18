"""The plan of an experiment of the demonstration: the number of users follows from the effect, and not from the speed of the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from demo.experiment.crowd import CrowdPlan
from demo.experiment.plan import ALPHA, PATIENCE, POWER, Pace, plan_demo
from demo.experiment.world import DemoWorld
from thinktwice.data.simulator.config import SimConfig
from thinktwice.errors import ExperimentError

CONTROL, TREATMENT = "a" * 64, "b" * 64
WORLD = DemoWorld(SimConfig(rows=2_000, users=20_000, items=100, drift=2.0, click_rate=0.3, id_variance=3.0))


@pytest.mark.parametrize("rate", [100.0, 3.0])
def test_a_slow_machine_plans_as_many_users(rate: float) -> None:
    pace = Pace(effect=0.4)
    planned = plan_demo("demo-x", CONTROL, TREATMENT, WORLD, CrowdPlan(rate=rate), pace, seed=5)
    file, last = planned.file, planned.plan.lines[(planned.plan.days_needed or 0) - 1]
    assert file.horizon is not None and file.horizon.units == planned.users == 2 * last.units_per_arm
    # A look more is at most so many users more.
    few = plan_demo("demo-x", CONTROL, TREATMENT, WORLD, CrowdPlan(rate=20.0), pace, seed=5)
    assert abs(planned.users - few.users) <= 2 * rate * planned.look + 2 * 20.0 * few.look
    assert planned.seconds == pytest.approx(file.horizon.looks * planned.look) and planned.look >= pace.look
    assert file.horizon.days * 86_400 == pytest.approx(PATIENCE * planned.seconds)
    assert file.alpha == file.guardrail_alpha == ALPHA and 2 <= file.minimum.units < planned.users
    assert (
        last.minimum_detectable <= pace.effect * planned.plan.lines[-1].baseline and planned.plan.wanted_power == POWER
    )


def test_an_effect_that_no_number_of_users_shows_is_refused() -> None:
    world = replace(WORLD, config=WORLD.config.model_copy(update={"users": 100}))
    with pytest.raises(ExperimentError, match=r"an effect of 1% cannot be found with"):
        plan_demo("demo-x", CONTROL, TREATMENT, world, CrowdPlan(rate=2_000.0), Pace(effect=0.01), seed=1)
