"""The end of an experiment: whatever its data are, it ends at its horizon, as the file declares for the checks that fail."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.experiment.evidence import changed_arm, counts_of, evidence, users
from tests.experiment.files import experiment, repeatable
from thinktwice.experiment.checks import check_results
from thinktwice.experiment.decision import decide
from thinktwice.experiment.evidence import Evidence, MomentsModel
from thinktwice.experiment.file import Checks, ExperimentFile
from thinktwice.experiment.metrics import SUMS
from thinktwice.experiment.outcomes import OutcomeCounts
from thinktwice.experiment.remaining import standing
from thinktwice.stats.moments import Moments

UNITS = 1500
CHECKS = tuple(Checks.model_fields)
#: Plans that end at the evidence of ``at_horizon``: by their days, or by their units long before their days.
PLANS: dict[str, dict[str, Any]] = {
    "days": {"days": 4, "looks": 4},
    "units": {"days": 300, "looks": 4, "units": 2 * UNITS},
}


def declared(plan: str, **fields: Any) -> ExperimentFile:
    content = {"coverage": 1.0, "horizon": PLANS[plan], "minimum": {"days": 1, "units": 200}, **fields}
    return experiment(**content)


@lru_cache(maxsize=8)
def at_horizon(plan: str, lift: float) -> Evidence:
    return evidence(declared(plan), 4, units=UNITS, t1={"lift": lift})


@lru_cache(maxsize=2)
def with_past(lift: float) -> MomentsModel:
    """Sums of users whose clicks before the experiment are lifted."""
    now, past = users(UNITS, 4, 5), users(UNITS, 4, 5, lift=lift)
    names = (*SUMS, *(f"pre_{name}" for name in SUMS))
    return MomentsModel.of(Moments.of(names, np.concatenate([now, past], axis=1)))


def broken(found: Evidence, file: ExperimentFile, check: str) -> Evidence:
    """The same evidence with one failed check."""
    clicks = OutcomeCounts(**{**dict.fromkeys(OutcomeCounts.model_fields, 0), "clicks": 1000})

    def joined(**changes: int) -> Evidence:
        return found.model_copy(update={"exposures": counts_of(file, UNITS, **changes)})

    def of_arm(**changes: Any) -> Evidence:
        counts = counts_of(file, UNITS)
        arms = (counts.arms[0], counts.arms[1].model_copy(update=changes))
        return found.model_copy(update={"exposures": counts.model_copy(update={"arms": arms})})

    return {
        "sample_ratio": lambda: changed_arm(found, "t1", units=2 * UNITS),
        "exposure_loss": lambda: of_arm(lost=5000),
        "unexplained_rows": lambda: joined(unexplained=5000),
        "duplicate_requests": lambda: joined(ambiguous=500),
        "assignment": lambda: joined(wrong_arm=1),
        "version_changed": lambda: of_arm(versions=("b1 hash", "b2 hash")),
        "unit_in_two_arms": lambda: joined(units_in_two_arms=50),
        "pre_exposure_bias": lambda: changed_arm(
            changed_arm(found, "t1", sums=with_past(2.0)), "control", sums=with_past(0.0)
        ),
        "unequal_replicas": lambda: changed_arm(found, "t1", warm_replicas=1),
        "log_write_failures": lambda: found.model_copy(update={"log_write_failures": 3}),
        "fallback_share": lambda: of_arm(fallbacks=4000),
        "clock_skew": lambda: joined(skewed=600),
        "late_outcomes": lambda: found.model_copy(update={"outcomes": clicks.model_copy(update={"late": 100})}),
    }[check]()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("action", ["hold", "roll_back", "warn"])
def test_an_experiment_with_a_failed_check_ends_at_its_horizon(plan: str, check: str, action: str) -> None:
    for lift in (0.0, 1.0):
        file = declared(plan, checks={check: action})
        found = broken(at_horizon(plan, lift), file, check)
        assert [c.name for c in check_results(file, found) if c.passed is False] == [check]
        decision = decide(file, found).decision
        expected = {
            "hold": ("hold", "ready_for_review"),
            "roll_back": ("roll_back", "roll_back"),
            "warn": ("promote", "ship") if lift else ("hold", "ready_for_review"),
        }[action]
        if check == "pre_exposure_bias" and action == "warn":
            expected = decision.action, decision.status  # the past takes part in the estimate
        assert (decision.action, decision.status) == expected and decision.over
        assert any(check in reason for reason in decision.reasons)


@repeatable
@given(
    st.sampled_from(sorted(PLANS)),
    st.sets(st.sampled_from(CHECKS), max_size=4),
    st.dictionaries(st.sampled_from(CHECKS), st.sampled_from(["hold", "roll_back", "warn"])),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
)
def test_any_failed_checks_end_as_the_strictest_action_says(
    plan: str, checks: set[str], actions: dict[str, str], lift: float, half_way: bool
) -> None:
    file = declared(plan, checks=actions)
    found = at_horizon(plan, lift)
    for check in sorted(checks, key=lambda name: name == "sample_ratio"):
        one = broken(found, file, check)
        counts = found.exposures
        if one.exposures != at_horizon(plan, lift).exposures and counts is not None and one.exposures is not None:
            changed = {
                name: value for name, value in one.exposures if name != "arms" and value != getattr(counts, name) and value
            }  # fmt: skip
            arms = one.exposures.arms if one.exposures.arms != counts_of(file, UNITS).arms else counts.arms
            one = one.model_copy(update={"exposures": counts.model_copy(update={**changed, "arms": arms})})
        found = one
    declared_actions = {c.action for c in check_results(file, found) if c.passed is False}
    if half_way:  # nothing ends before the horizon for a check that only holds
        found = found.model_copy(update={"days": 1.5})
        file = declared("days", checks=actions)
    decision = decide(file, found).decision
    if "roll_back" in declared_actions:
        assert decision.action == "roll_back"
    elif "hold" in declared_actions:
        assert (decision.action, decision.status) == ("hold", "unhealthy" if half_way else "ready_for_review")
    assert decision.over or half_way


DEGENERATE = ("no units", "no data at all", "one unit", "zero variance", "one value", "few units", "a very active user")


@pytest.mark.parametrize("what", DEGENERATE)
def test_an_experiment_whose_data_cannot_be_tested_ends_when_its_days_are_over(what: str) -> None:
    file = declared("days", checks=dict.fromkeys(CHECKS, "warn"))
    good, rows = evidence(file, 4, units=UNITS), users(UNITS, 4, 1)
    sums = {
        "no units": rows[:0],
        "one unit": rows[:1],
        "zero variance": rows * 0 + [10, 1, 0, 50, 5, 5, 5.0, 85],
        "one value": rows * 0,
        "few units": rows[:50],
    }.get(what)
    if what == "a very active user":
        rows[0] *= 10_000
        sums = rows
    if sums is None:
        found = good.model_copy(update={"arms": ()})
    else:
        model = MomentsModel.of(Moments.of(SUMS, sums))
        found = changed_arm(good, "t1", units=len(sums), sums=model)
        if what in ("zero variance", "one value"):
            found = changed_arm(found, "control", sums=model)
    decision = decide(file, found).decision
    assert (decision.action, decision.status) == ("hold", "ready_for_review") and decision.over
    assert not decide(file, found.model_copy(update={"days": 3.0})).decision.over


@pytest.mark.parametrize("plan", PLANS)
def test_what_is_left_is_counted_as_the_plan_counts(plan: str) -> None:
    file = declared(plan)
    for units, days in itertools.product((0, 100, 199, 200, 700, UNITS), (0.01, 0.5, 1.0, 3.99)):
        shown = standing(file, "days_left", days, (units, units))
        missing = 2 * (UNITS - units)
        if plan == "units":
            assert shown == (
                f"{missing:,} users left" if missing or days >= 1 else f"about {shown.split()[1]} hours left"
            )
        else:
            assert ("left to the minimum" in shown) is (units == 0) and "left" in shown
    assert standing(file, "ready_for_review", 4, (9, 9)) == "ready for review"


@pytest.mark.parametrize(
    ("fields", "days", "units", "words"),
    [
        ({"horizon": {"days": 14, "looks": 14}}, 3.0, (500, 500), "about 11.0 days left"),
        ({"horizon": {"days": 14, "looks": 14}}, 13.0, (500, 500), "about 24 hours left"),
        ({"horizon": {"days": 14, "looks": 14}}, 13.99, (500, 500), "about 14 minutes left"),
        ({"horizon": {"days": 14, "looks": 14}}, 13.9999, (500, 500), "about 9 seconds left"),
        ({"horizon": {"days": 14, "looks": 14, "units": 9000}}, 3.0, (500, 400), "8,100 users left"),
        ({"horizon": {"days": 14, "looks": 14, "units": 1000}}, 3.0, (990, 10), "490 users left"),
        ({"horizon": {"days": 14, "looks": 14, "units": 1000}}, 1.0, (600, 600), "about 2.0 days left"),
        ({}, 3.0, (10, 20), "970 users left to the minimum"),
        ({}, 1.0, (500, 500), "about 2.0 days left to the minimum"),
        ({}, 3.0, (500, 500), "no end is planned"),
    ],
)
def test_the_words_of_a_plan(fields: dict[str, Any], days: float, units: tuple[int, ...], words: str) -> None:
    file = experiment(coverage=1.0, minimum={"days": 3, "units": 500}, **fields)
    assert standing(file, "days_left", days, units) == words
