"""Decision to hold, ramp, promote or roll back, with reasons: a pure function of the file, the evidence and the earlier
looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from thinktwice.experiment.analysis import (
    Look,
    PrimaryResult,
    SliceResult,
    horizon_passed,
    minimum_reached,
    primary_results,
    slice_results,
)
from thinktwice.experiment.checks import CheckResult, check_results, failed
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.guardrails import GuardrailResult, guardrail_results
from thinktwice.experiment.remaining import days_left
from thinktwice.frozen import Frozen

DecisionAction = Literal["hold", "ramp", "promote", "roll_back"]
Status = Literal["unhealthy", "no_data", "days_left", "ship", "roll_back", "ready_for_review"]


PASSED = "the horizon has passed"
OPTIONAL = ("pre_exposure_bias", "late_outcomes")  # checks that may be missing


class Decision(Frozen):
    """The decision.

    Attributes:
        arm: the arm to promote; null for other actions.
        coverage: the next coverage of a ramp; null for other actions.
        days_left: days until a decision can be expected; null if unknown.
        status: ``ready_for_review`` ends an experiment without a decision: its horizon has passed, and a person judges.
    """

    action: DecisionAction
    status: Status
    arm: str | None = None
    coverage: float | None = None
    days_left: float | None = None
    reasons: tuple[str, ...]

    @property
    def final(self) -> bool:
        return self.action in ("promote", "roll_back")

    @property
    def over(self) -> bool:
        """Whether the experiment ends: by this decision, or without one."""
        return self.final or self.status == "ready_for_review"


class Verdict(Frozen):
    """A decision and everything it is based on. ``look`` is set if this evidence counted as a look."""

    decision: Decision
    look: Look | None
    primary: tuple[PrimaryResult, ...]
    guardrails: tuple[GuardrailResult, ...]
    checks: tuple[CheckResult, ...]
    slices: tuple[SliceResult, ...]


def decide(file: ExperimentFile, evidence: Evidence, history: Sequence[Verdict] = ()) -> Verdict:
    """The verdict on new evidence, given the earlier verdicts.

    A promotion or roll-back ends an experiment: later evidence is analysed, but the decision is final.
    """
    looks = [v.look for v in history if v.look is not None]
    checks = check_results(file, evidence, _worst_ratio(history))
    look, primary = primary_results(file, evidence, looks)
    guardrails = guardrail_results(file, evidence, _first_judged(history))
    ended = next((v.decision for v in history if v.decision.final), None)
    if ended is None:
        looked = any(outcome.final for outcome in [*looks, *((look,) if look else ())])
        over = looked or horizon_passed(file, evidence)
        decision = _decide(file, evidence, primary, guardrails, checks, over)
    else:
        decision = ended.model_copy(update={"reasons": (*ended.reasons, "decided before; it stays")})
    slices = slice_results(file, evidence)
    return Verdict(decision=decision, look=look, primary=primary, guardrails=guardrails, checks=checks, slices=slices)


def _decide(
    file: ExperimentFile,
    evidence: Evidence,
    primary: Sequence[PrimaryResult],
    guardrails: Sequence[GuardrailResult],
    checks: Sequence[CheckResult],
    over: bool,
) -> Decision:
    if broken := failed(checks, "roll_back"):
        return Decision(action="roll_back", status="roll_back", reasons=tuple(_check_message(c) for c in broken))
    if breached := [g for g in guardrails if g.breached]:
        return Decision(action="roll_back", status="roll_back", reasons=tuple(_harm(g) for g in breached))
    if broken := failed(checks, "hold"):
        return _held("unhealthy", over, tuple(_check_message(c) for c in broken))
    warnings = tuple(f"warning: {_check_message(c)}" for c in failed(checks, "warn"))
    if unknown := [c.name for c in checks if c.passed is None and c.name not in OPTIONAL]:
        warnings = (*warnings, f"warning: not measured: {', '.join(unknown)}")
    empty = [a.name for a, units in zip(file.arms, _units(file, evidence), strict=True) if not units]
    if empty:
        return _held("no_data", over, (f"no unit in {', '.join(empty)}", *warnings))
    if worse := [r for r in primary if r.verdict == "worse"]:
        return Decision(action="roll_back", status="roll_back", reasons=(*(_effect(r) for r in worse), *warnings))
    better = [r for r in primary if r.verdict == "better"]
    shown = [r for r in better if all(g.safe for g in guardrails if g.arm == r.arm)]
    if shown:
        best = max(shown, key=lambda r: abs(r.value or 0.0))
        safe = tuple(f"{g.metric} of {g.arm} is within its margin" for g in guardrails if g.arm == best.arm)
        return Decision(action="promote", status="ship", arm=best.arm, reasons=(_effect(best), *safe, *warnings))
    open_guardrails = tuple(_unproven(g) for g in guardrails if not g.safe)
    flags = tuple(f"{r.metric} of {r.arm}: {', '.join(r.flags)}" for r in primary if r.flags)
    if over:
        text = tuple(_effect(r) for r in better) or (f"{PASSED} and nothing is shown",)
        return Decision(
            action="hold",
            status="ready_for_review",
            days_left=0.0,
            reasons=(*text, *flags, *open_guardrails, *warnings),
        )
    left = days_left(file, evidence.days, _units(file, evidence))
    waiting: tuple[str, ...] = tuple(_effect(r) for r in better) + (open_guardrails if better else ())
    if not minimum_reached(file, evidence):
        units = min(_units(file, evidence))
        waiting = (
            f"{evidence.days:.1f} of at least {file.minimum.days:g} days and {units:,} of at least "
            f"{file.minimum.units:,} units an arm",
        )
    reasons = (*(waiting or ("nothing is shown yet",)), *flags, *warnings)
    step = next((s for s in file.ramp if s.coverage > evidence.coverage), None)
    if step is not None and evidence.coverage > 0 and not better:
        units = min(_units(file, evidence))
        if evidence.days_at_coverage >= step.after_days and units >= step.after_units:
            return Decision(
                action="ramp", status="days_left", coverage=step.coverage, days_left=left,
                reasons=(f"no check failed and no guardrail is breached at {evidence.coverage:.2%}", *reasons),
            )  # fmt: skip
    return Decision(action="hold", status="days_left", days_left=left, reasons=reasons)


def _held(status: Literal["unhealthy", "no_data"], over: bool, why: tuple[str, ...]) -> Decision:
    """Nothing can be decided; after the horizon nothing better is waited for."""
    if over:
        return Decision(
            action="hold", status="ready_for_review", days_left=0.0,
            reasons=(f"{PASSED} and nothing can be decided", *why),
        )  # fmt: skip
    return Decision(action="hold", status=status, reasons=why)


def _units(file: ExperimentFile, evidence: Evidence) -> list[int]:
    """Enrolled units of every arm."""
    return [getattr(evidence.arm(a.name), "units", 0) for a in file.arms]


def _worst_ratio(history: Sequence[Verdict]) -> float:
    ratios = [c.value for v in history for c in v.checks if c.name == "sample_ratio" and c.value is not None]
    return min(ratios, default=1.0)


def _first_judged(history: Sequence[Verdict]) -> list[GuardrailResult]:
    first: dict[tuple[str, str], GuardrailResult] = {}
    for verdict in history:
        for g in verdict.guardrails:
            if g.judged:
                first.setdefault((g.arm, g.metric), g)
    return list(first.values())


def _check_message(check: CheckResult) -> str:
    return f"{check.name}: {check.reason}"


def _harm(g: GuardrailResult) -> str:
    margin = f"{g.margin:.2%} of control" if g.relative else f"{g.margin:g}"
    return (
        f"{g.metric} of {g.arm} is worse than control by more than {margin}: {g.treatment:.6g} against {g.control:.6g}"
    )


def _unproven(g: GuardrailResult) -> str:
    why = f" ({', '.join(g.flags)})" if g.flags else ""
    return f"{g.metric} of {g.arm} is not yet shown to be within its margin{why}"


def _effect(r: PrimaryResult) -> str:
    relative = "" if r.relative is None else f", {r.relative:+.2%}"
    interval = "" if r.low is None or r.high is None else f" ({r.low:+.6g} to {r.high:+.6g})"
    return f"{r.metric} of {r.arm} is {r.verdict}: {r.value:+.6g}{interval}{relative}, p {r.adjusted_p:.2g}"
