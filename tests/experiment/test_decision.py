"""Decisions: each with its reason, from effects, guardrails and checks, and what degenerate data make of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.experiment.evidence import changed_arm, counts_of, evidence, users
from tests.experiment.files import experiment
from thinktwice.experiment.analysis import due_look
from thinktwice.experiment.checks import check_results
from thinktwice.experiment.decision import Verdict, decide
from thinktwice.experiment.evidence import Evidence, MomentsModel, SliceEvidence
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.guardrails import guardrail_results
from thinktwice.experiment.metrics import SUMS
from thinktwice.experiment.outcomes import OutcomeCounts
from thinktwice.stats.moments import Moments

GUARDRAILS = [
    {"metric": "error_rate", "worse": "increase", "margin": 0.005},
    {"metric": "latency_p99", "worse": "increase", "margin": 0.2, "relative": True},
    {"metric": "escalation_rate", "worse": "increase", "margin": 0.1},
    {"metric": "calibration", "worse": "either", "margin": 0.1, "relative": True},
]


def declared(**fields: Any) -> ExperimentFile:
    base = {
        "coverage": 0.5, "horizon": {"days": 14, "looks": 14}, "minimum": {"days": 3, "units": 500}, "guardrails": GUARDRAILS,
        "ramp": [{"coverage": 0.5}, {"coverage": 1.0, "after_days": 2}],
    }  # fmt: skip
    return experiment(**{**base, **fields})


def run(file: ExperimentFile, days: list[float], **rates: Any) -> list[Verdict]:
    history: list[Verdict] = []
    for day in days:
        history.append(decide(file, evidence(file, day, **rates), history))
    return history


def test_a_better_treatment_is_promoted() -> None:
    last = run(declared(), [3, 4, 5, 6], t1={"lift": 0.3})[-1]
    assert (last.decision.action, last.decision.status, last.decision.arm) == ("promote", "ship", "t1")
    (primary,) = last.primary
    assert primary.verdict == "better" and primary.relative == pytest.approx(0.3, abs=0.1)
    assert primary.low is not None and primary.low > 0 and "within its margin" in " ".join(last.decision.reasons)
    assert last.look is not None


def test_a_worse_treatment_is_rolled_back() -> None:
    last = run(declared(), [3, 4, 5, 6, 7, 8], t1={"lift": -0.3})[-1]
    assert (last.decision.action, last.decision.status) == ("roll_back", "roll_back")
    assert "ctr of t1 is worse" in last.decision.reasons[0]


def test_a_better_metric_may_be_a_lower_one() -> None:
    file = declared(primary={"metric": "escalation_rate", "better": "decrease"}, guardrails=[])
    assert run(file, [3, 5, 7], t1={"escalated": 0.05})[-1].decision.action == "promote"
    assert run(file, [3, 5, 7], t1={"escalated": 0.15})[-1].decision.action == "roll_back"


@pytest.mark.parametrize(
    ("rates", "metric"),
    [
        ({"errors": 0.05}, "error_rate"),
        ({"slower": 0.5}, "latency_p99"),
        ({"escalated": 0.4}, "escalation_rate"),
        ({"calibration": 1.5}, "calibration"),
        ({"calibration": 0.6}, "calibration"),
    ],
)
def test_a_breached_guardrail_rolls_back_before_the_minimum(rates: dict[str, float], metric: str) -> None:
    found = run(declared(), [1], t1={"lift": 0.2, **rates})[-1]
    assert found.decision.action == "roll_back" and metric in found.decision.reasons[0]
    assert [g.metric for g in found.guardrails if g.breached] == [metric]


def test_errors_are_seen_when_control_has_none_at_all() -> None:
    found = run(declared(), [1], control={"errors": 0.0}, t1={"errors": 0.2})[-1]
    assert found.decision.action == "roll_back" and "error_rate" in found.decision.reasons[0]
    gone = run(declared(guardrails=[]), [3, 4, 5], t1={"lift": -1.0})[-1]  # not one click
    assert gone.decision.action == "roll_back"


def test_a_few_requests_roll_nothing_back() -> None:
    found = run(declared(), [1], units=50, t1={"errors": 0.5})[-1]
    assert found.decision.action == "hold" and not any(g.judged for g in found.guardrails)
    assert all("few_effective_units" in g.flags for g in found.guardrails)


def test_no_effect_holds_and_ramps_and_ends_in_review() -> None:
    history = run(declared(), [1, *range(3, 15)])
    actions = [v.decision.action for v in history]
    assert actions[0] == "hold" and "at least 3 days" in history[0].decision.reasons[0]
    assert history[1].decision.action == "ramp" and history[1].decision.coverage == 1.0
    assert history[1].decision.days_left == pytest.approx(11)
    assert history[-1].decision.status == "ready_for_review" and not any(v.decision.final for v in history)
    assert history[0].look is None and history[0].decision.days_left == pytest.approx(13)
    assert history[-1].look is not None and history[-1].look.final


def test_looks_are_counted_as_declared() -> None:
    file = declared()
    history = run(file, [3, 3.1, 3.2, 4, 4.4, 4.6])
    assert [v.look is not None for v in history] == [True, False, False, True, False, True]
    last = 1.0
    for v in history:  # between looks nothing is tested: no interval, and the p-value is that of the look before
        assert (v.primary[0].boundary is not None) == (v.look is not None)
        assert v.look is not None or v.primary[0].p == last
        last = v.primary[0].p
    assert (
        due_look(file, evidence(file, 20), [v.look for v in run(file, [3, 14]) if v.look]) is None
    )  # the last look is over
    by_units = declared(horizon={"days": 14, "looks": 10, "units": 12_000})
    assert due_look(by_units, evidence(by_units, 3, units=600), []) == (0.1, False)
    assert due_look(by_units, evidence(by_units, 3, units=6000), []) == (1.0, True)


def test_a_horizon_of_units_does_not_depend_on_its_days() -> None:
    """Days are then only the most that the experiment may take: guardrails and the time left follow the units."""
    short, long = (declared(horizon={"days": days, "looks": 10, "units": 20_000}) for days in (14, 300))
    for units in (1_000, 4_000):
        one, other = (decide(file, evidence(file, 5, units=units)) for file in (short, long))
        assert one.guardrails == other.guardrails and one.primary == other.primary
        assert other.decision.days_left == pytest.approx(5 * (20_000 / (2 * units) - 1))


def test_a_promotion_waits_for_its_guardrails() -> None:
    file = declared(guardrails=[{"metric": "error_rate", "worse": "increase", "margin": 0.0001}])
    history = run(file, [3, 5, 7, 14], t1={"lift": 0.3})
    assert all(v.primary[0].verdict == "better" for v in history[1:])
    assert {v.decision.action for v in history} <= {"hold", "ramp"}
    assert history[-1].decision.status == "ready_for_review"
    assert any("not yet shown" in r for r in history[-1].decision.reasons)


def test_a_promotion_may_come_after_the_last_look() -> None:
    """The last look shows the effect; the guardrail is shown safe by later data only."""
    file = declared(guardrails=[{"metric": "latency_p99", "worse": "increase", "margin": 0.02, "relative": True}])
    history = run(file, [3, 8, 14], t1={"lift": 0.3, "slower": 0.01})
    assert history[-1].decision.status == "ready_for_review" and history[-1].primary[0].verdict == "better"
    assert "is better" in history[-1].decision.reasons[0]
    later = evidence(file, 15, t1={"lift": 0.3, "slower": 0.0})
    last = decide(file, later, history)
    assert last.look is None and last.decision.action == "promote"


def test_what_was_not_measured_is_said() -> None:
    file = declared(guardrails=[])
    found = decide(file, evidence(file, 5, changes={"exposures": None, "log_write_failures": None}))
    assert any("not measured" in r and "assignment" in r and "log_write_failures" in r for r in found.decision.reasons)
    assert not any("not measured" in r for r in decide(file, evidence(file, 5)).decision.reasons)
    unknown = [check for check in found.checks if check.passed is None]
    assert unknown and all(len(check.reason.split()) > 3 for check in unknown), "every gap has its reason"


def test_a_final_decision_stays() -> None:
    file = declared()
    history = run(file, [3, 4, 5, 6], t1={"lift": 0.3})
    again = decide(file, evidence(file, 8, t1={"lift": -0.5}), history)
    assert again.decision.action == "promote" and again.decision.reasons[-1] == "decided before; it stays"


@pytest.mark.parametrize("method", ["sequence", "fixed"])
def test_other_methods(method: str) -> None:
    file = declared(method=method, guardrails=[])
    early = run(file, [3, 5], t1={"lift": 0.3})
    last = run(file, [3, 5, 14], t1={"lift": 0.3})[-1]
    assert last.decision.action == "promote"
    if method == "fixed":
        assert all(v.primary[0].p == 1.0 for v in early)
    unending = experiment(coverage=1.0, minimum={"days": 1, "units": 100})
    assert unending.test == "sequence"
    assert run(unending, [1, 2, 3, 5, 9], t1={"lift": 0.3})[-1].decision.action == "promote"
    assert run(unending, [1, 2, 3, 5, 9])[-1].decision.action == "hold"


def test_several_arms_are_corrected_and_the_best_is_promoted() -> None:
    file = declared(arms=4, guardrails=[])
    found = run(file, [3, 5, 7, 9], t1={"lift": 0.02}, t2={"lift": 0.5}, t3={"lift": 0.2})[-1]
    assert found.decision.action == "promote" and found.decision.arm == "t2"
    assert all(r.adjusted_p >= r.p for r in found.primary)


def test_the_pre_period_reduces_variance_and_shows_bias() -> None:
    file = declared(guardrails=[])
    found = decide(file, evidence(file, 5, past=True))
    assert found.primary[0].variance_reduction > 0.03
    check = {c.name: c for c in found.checks}["pre_exposure_bias"]
    assert check.passed
    biased = evidence(file, 5, past=True, t1={"lift": 0.5})  # the past of these users is as much better
    check = {c.name: c for c in check_results(file, biased)}["pre_exposure_bias"]
    assert check.passed is False and decide(file, biased).decision.status == "unhealthy"


BROKEN: dict[str, dict[str, Any]] = {
    "unexplained_rows": {"unexplained": 5000},
    "duplicate_requests": {"ambiguous": 200},
    "assignment": {"wrong_arm": 1},
    "unit_in_two_arms": {"units_in_two_arms": 50},
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("action", ["hold", "roll_back", "warn"])
def test_a_failed_check_does_what_was_declared(name: str, action: str) -> None:
    file = declared(checks={name: action}, guardrails=[])
    bad = evidence(file, 5, changes={"exposures": counts_of(file, 3000, **BROKEN[name])}, t1={"lift": 0.4})
    decision = decide(file, bad, run(file, [3], t1={"lift": 0.4})[:0]).decision
    expected = {"hold": ("hold", "unhealthy"), "roll_back": ("roll_back", "roll_back"), "warn": ("promote", "ship")}[
        action
    ]
    assert (decision.action, decision.status) == expected
    assert any(name in reason for reason in decision.reasons)


def with_arm(file: ExperimentFile, **changes: Any) -> Evidence:
    counts = counts_of(file, 3000)
    arms = (counts.arms[0], counts.arms[1].model_copy(update=changes))
    return evidence(file, 5, changes={"exposures": counts.model_copy(update={"arms": arms})})


def test_every_other_check_fails_on_its_own() -> None:
    file = declared(guardrails=[])
    clicks = OutcomeCounts(**{**dict.fromkeys(OutcomeCounts.model_fields, 0), "clicks": 1000})
    base = evidence(file, 5)
    cases: dict[str, Evidence] = {
        "sample_ratio": changed_arm(base, "t1", units=2000),
        "exposure_loss": with_arm(file, lost=5000),
        "version_changed": with_arm(file, versions=("b1 hash", "b2 hash")),
        "fallback_share": with_arm(file, fallbacks=400),
        "unequal_replicas": changed_arm(base, "t1", warm_replicas=1),
        "log_write_failures": base.model_copy(update={"log_write_failures": 3}),
        "clock_skew": base.model_copy(update={"exposures": counts_of(file, 3000, skewed=600)}),
        "late_outcomes": base.model_copy(update={"outcomes": clicks.model_copy(update={"late": 100})}),
    }
    before = base.model_copy(update={"outcomes": clicks.model_copy(update={"before_exposure": 100})})
    assert {c.name for c in check_results(file, before) if c.passed is False} == {"clock_skew"}
    for name, found in cases.items():
        assert [c.name for c in check_results(file, found) if c.passed is False] == [name]
    assert set(cases) | set(BROKEN) | {"pre_exposure_bias"} == set(type(file.checks).model_fields)
    assert [c.name for c in check_results(file, base) if c.passed is False] == []
    bare = base.model_copy(update={"exposures": None, "outcomes": None, "log_write_failures": None})
    unknown = {c.name for c in check_results(file, bare) if c.passed is None}
    assert unknown >= {"exposure_loss", "assignment", "log_write_failures", "late_outcomes", "clock_skew"}


def test_an_alarm_of_the_sample_ratio_does_not_go_away() -> None:
    file = declared(guardrails=[])
    first = decide(file, changed_arm(evidence(file, 3), "t1", units=2000))
    assert first.decision.status == "unhealthy"
    assert decide(file, evidence(file, 4), [first]).decision.status == "unhealthy"


def sums_of(values: Any) -> MomentsModel:
    return MomentsModel.of(Moments.of(SUMS, values))


@pytest.mark.parametrize(
    "what", ["no units", "no data at all", "one unit", "zero variance", "one value", "nan", "no impressions"]
)
def test_degenerate_data_are_flagged_and_decide_nothing(what: str) -> None:
    file = declared()
    good = evidence(file, 5, t1={"lift": 0.5})
    rows = users(3000, 5, 1)
    if what == "no units":
        bad = changed_arm(good, "t1", units=0, sums=sums_of(rows[:0]))
    elif what == "no data at all":
        bad = good.model_copy(update={"arms": ()})
    elif what == "one unit":
        bad = changed_arm(good, "t1", units=1, sums=sums_of(rows[:1]))
    elif what == "zero variance":
        same = rows * 0 + [10, 1, 0, 50, 5, 5, 5.0, 85]
        bad = changed_arm(changed_arm(good, "t1", sums=sums_of(same)), "control", sums=sums_of(same))
    elif what == "one value":
        bad = changed_arm(changed_arm(good, "t1", sums=sums_of(rows * 0)), "control", sums=sums_of(rows * 0))
    elif what == "nan":
        rows[7, 4] = math.nan
        bad = changed_arm(good, "t1", sums=sums_of(rows))
    else:
        rows[:, 3] = 0
        bad = changed_arm(good, "t1", sums=sums_of(rows))
    found = decide(file, bad)
    assert found.decision.action in ("hold", "ramp") and found.look is None
    (primary,) = found.primary
    assert primary.flags and primary.verdict == "unclear" and primary.p == 1.0
    assert primary.low is None and primary.high is None
    json.loads(found.model_dump_json())  # no NaN, which is no JSON
    assert not any(g.breached or g.safe for g in found.guardrails if g.flags)


def test_slices_explain_and_are_corrected() -> None:
    file = declared(slices=["device"], guardrails=[])
    base = evidence(file, 5)
    slices = tuple(
        SliceEvidence(slice="device", value=value, arm=arm, sums=sums_of(users(1500, 5, seed, lift=lift)))
        for value, seed, lift in (("tv", 3, 0.0), ("phone", 4, 0.5))
        for arm, seed, lift in ((("control", seed, 0.0)), (("t1", seed + 50, lift)))
    )
    slices += (SliceEvidence(slice="device", value="only-control", arm="control", sums=sums_of(users(50, 5, 9))),)
    found = decide(file, base.model_copy(update={"slices": slices}))
    by_value = {s.value: s for s in found.slices}
    assert by_value["phone"].adjusted_p < 0.01 < by_value["tv"].adjusted_p
    assert by_value["only-control"].flags == ("no_units",) and by_value["only-control"].p == 1.0
    assert all(s.adjusted_p >= s.p for s in found.slices)


def test_a_few_very_active_users_are_no_evidence() -> None:
    file = declared()
    rows = users(3000, 5, 1)
    rows[:3] *= 3000  # three users make nearly all impressions
    found = decide(file, changed_arm(evidence(file, 5, t1={"lift": 0.5}), "t1", sums=sums_of(rows)))
    assert found.look is None and found.primary[0].flags == ("few_effective_units",)
    assert found.primary[0].verdict == "unclear" and not any(g.judged for g in found.guardrails)


@pytest.mark.parametrize(("units", "safe"), [(3000, True), (500, False)])
def test_an_error_rate_without_errors_is_shown_to_be_within_its_margin_by_enough_requests(
    units: int, safe: bool
) -> None:
    file = experiment(
        coverage=0.5,
        horizon={"days": 14, "looks": 14},
        minimum={"days": 1, "units": 100},
        guardrails=[{"metric": "error_rate", "worse": "increase", "margin": 0.001}],
    )
    clean = evidence(file, 2, units=units, control={"errors": 0.0}, t1={"errors": 0.0})
    (result,) = guardrail_results(file, clean, ())
    assert (result.control, result.treatment, result.judged, result.breached) == (0.0, 0.0, True, False)
    assert result.safe == safe
    worse = evidence(file, 2, units=units, control={"errors": 0.0}, t1={"errors": 0.05})
    assert guardrail_results(file, worse, ())[0].safe is False
