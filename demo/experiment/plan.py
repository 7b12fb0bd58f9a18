"""The plan of an experiment of the demonstration: horizon, looks and minimum units follow from past traffic and the planner."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from demo.experiment.crowd import DEADLINE_MS, CrowdPlan
from demo.experiment.world import DemoWorld
from thinktwice.errors import ExperimentError
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.planning import ExperimentPlan, plan_experiment
from thinktwice.parquet import write_frame

DAY = 86_400.0
FEWEST_LOOKS, MOST_LOOKS = 16, 32  # a plan starts with the first, and doubles until it finds the effect
MOST_VISITS = 60_000  # more would not find it either: the same users return
ALPHA = (
    0.002  # ten demonstrations of one model against itself then end in ten times no decision with a probability of 98 %
)
POWER = 0.99
PATIENCE = (
    10.0  # a machine that becomes so many times slower than it was when the plan was made ends an experiment early
)


@dataclass(frozen=True)
class Pace:
    """How fast the demonstration goes: seconds between looks, and the ramp before full coverage.

    Attributes:
        effect: relative effect that the experiment is to find.
        first: coverage of the first step, which lasts until the first look that sees ``first_units`` users in each arm.
    """

    look: float = 7.0
    effect: float = 0.12
    first: float = 0.2
    first_units: int = 10


@dataclass(frozen=True)
class Planned:
    """An experiment file, and the plan that it follows from.

    Attributes:
        users: planned in both arms.
        seconds: in which they are expected.
        look: seconds between two looks.
    """

    file: ExperimentFile
    plan: ExperimentPlan
    users: int
    seconds: float
    look: float


def plan_demo(
    name: str, control: str, treatment: str, world: DemoWorld, crowd: CrowdPlan, pace: Pace, seed: int
) -> Planned:
    """Plan an experiment on users who come at the rate of ``crowd``.

    The visits between two looks stand for one day in the plan. The past traffic is that of users who were shown items at random.
    The experiment ends after the planned number of users, however long they take: its power does not depend on the machine.

    Raises:
        ExperimentError: the effect cannot be found.
    """
    content = {
        "version": 1,
        "name": name,
        "salt": f"{name}-{seed}",
        "arms": [{"name": "control", "bundle": control}, {"name": "treatment", "bundle": treatment}],
        "primary": {"metric": "ctr", "better": "increase"},
        "guardrails": [
            {"metric": "error_rate", "worse": "increase", "margin": 0.02},
            # Of the time that a user waits: as a share of control it would judge how busy the machine is.
            {"metric": "latency_p90", "worse": "increase", "margin": DEADLINE_MS / 2},
        ],
        "alpha": ALPHA,
        "guardrail_alpha": ALPHA,
        "minimum": {"days": 0, "units": 2},
    }
    looks, look = FEWEST_LOOKS, pace.look
    while True:
        draft = ExperimentFile.model_validate(content | {"horizon": {"days": looks, "looks": looks}})
        per_look = math.ceil(crowd.rate * look)
        with tempfile.TemporaryDirectory(prefix="thinktwice-plan-") as scratch:
            log = Path(scratch) / "past.parquet"
            _write_past(log, world, crowd, per_look, looks, seed)
            plan = plan_experiment(
                draft, log, unit="user_id", time="event_time", label="label", power=POWER, relative_effect=pace.effect
            )
        if plan.days_needed is not None:
            break
        if per_look * looks > MOST_VISITS:
            raise ExperimentError(
                f"an effect of {pace.effect:.0%} cannot be found with {per_look * looks:,} visits: choose a larger effect"
            )
        looks, look = (2 * looks, look) if looks < MOST_LOOKS else (looks, 2 * look)
    first, last = plan.lines[0], plan.lines[plan.days_needed - 1]
    seconds = plan.days_needed * look
    users = 2 * last.units_per_arm
    content |= {
        "ramp": [
            {"coverage": pace.first},
            {"coverage": 1.0, "after_days": look / 2 / DAY, "after_units": pace.first_units},
        ],
        "horizon": {"days": PATIENCE * seconds / DAY, "looks": plan.days_needed, "units": users},
        "minimum": {"days": look / DAY, "units": max(2, first.units_per_arm)},
    }
    return Planned(ExperimentFile.model_validate(content), plan, users, seconds, look)


def _write_past(path: Path, world: DemoWorld, crowd: CrowdPlan, per_look: int, looks: int, seed: int) -> None:
    users, clicks = world.past_visits(per_look * looks, crowd.shown, seed=seed + 1_000_003)
    rows = clicks.shape[1]
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(users, rows),
            "event_time": np.repeat(np.arange(len(users)) // per_look * 86_400_000_000, rows),
            "label": clicks.reshape(-1).astype(np.int8),
        }
    ).with_columns(pl.from_epoch("event_time", "us").dt.replace_time_zone("UTC"))
    write_frame(frame, path)
