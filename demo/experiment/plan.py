"""The plan of an experiment of the demonstration: horizon, looks and minimum units follow from past traffic and the planner."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from demo.experiment.crowd import CrowdPlan
from demo.experiment.world import DemoWorld
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.planning import ExperimentPlan, plan_experiment
from thinktwice.parquet import write_frame

DAY = 86_400.0
LOOKS = 30  # most looks that are planned for
POWER = 0.9


@dataclass(frozen=True)
class Pace:
    """How fast the demonstration goes: seconds between looks, and the ramp before full coverage.

    Attributes:
        effect: relative effect that the experiment is to find.
        first: coverage of the first step.
    """

    look: float = 8.0
    effect: float = 0.12
    first: float = 0.2


def plan_demo(
    name: str, control: str, treatment: str, world: DemoWorld, crowd: CrowdPlan, pace: Pace, alpha: float, seed: int
) -> tuple[ExperimentFile, ExperimentPlan]:
    """The experiment file, and the plan that it follows from.

    One look stands for one day in the plan. The past traffic is that of users who were shown items at random.
    """
    content = {
        "version": 1,
        "name": name,
        "salt": f"{name}-{seed}",
        "arms": [{"name": "control", "bundle": control}, {"name": "treatment", "bundle": treatment}],
        "primary": {"metric": "ctr", "better": "increase"},
        "guardrails": [
            {"metric": "error_rate", "worse": "increase", "margin": 0.02},
            {"metric": "latency_p90", "worse": "increase", "margin": 2.0, "relative": True},
        ],
        "alpha": alpha,
        "guardrail_alpha": alpha,
        "horizon": {"days": LOOKS, "looks": LOOKS},
        "minimum": {"days": 0, "units": 2},
    }
    draft = ExperimentFile.model_validate(content)
    with tempfile.TemporaryDirectory(prefix="thinktwice-plan-") as scratch:
        log = Path(scratch) / "past.parquet"
        _write_past(log, world, crowd, pace, seed)
        plan = plan_experiment(
            draft, log, unit="user_id", time="event_time", label="label", power=POWER, relative_effect=pace.effect
        )
    looks = plan.days_needed or LOOKS
    first = plan.lines[0]
    content |= {
        "ramp": [{"coverage": pace.first}, {"coverage": 1.0, "after_days": pace.look / DAY}],
        # The time at low coverage comes on top of the planned one.
        "horizon": {"days": (looks + 1) * pace.look / DAY, "looks": looks},
        "minimum": {"days": 2 * pace.look / DAY, "units": max(2, first.units_per_arm)},
    }
    return ExperimentFile.model_validate(content), plan


def _write_past(path: Path, world: DemoWorld, crowd: CrowdPlan, pace: Pace, seed: int) -> None:
    number = math.ceil(crowd.rate * pace.look * LOOKS)
    visits, clicks = world.past_visits(number, crowd.shown, seed=seed + 1_000_003)
    per_look = crowd.rate * pace.look
    days = np.minimum((np.arange(number) / per_look).astype(np.int64), LOOKS - 1)
    rows = clicks.shape[1]
    frame = pl.DataFrame(
        {
            "user_id": np.repeat([visit.user for visit in visits], rows),
            "event_time": np.repeat(days * 86_400_000_000, rows),
            "label": clicks.reshape(-1).astype(np.int8),
        }
    ).with_columns(pl.from_epoch("event_time", "us").dt.replace_time_zone("UTC"))
    write_frame(frame, path)
