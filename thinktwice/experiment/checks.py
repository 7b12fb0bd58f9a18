"""Data-quality checks: whether the numbers can be trusted. The experiment file declares the action of each check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from thinktwice.experiment.evidence import Evidence, Number
from thinktwice.experiment.file import Action, ExperimentFile
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.experiment.metrics import RATIOS
from thinktwice.frozen import Frozen
from thinktwice.stats.difference import Metric, difference, two_sided_p
from thinktwice.stats.sample_ratio import ALPHA, sample_ratio

BIAS_P = 1e-3  # of the primary metric before the experiment
SKEW_SHARE = 1e-3  # of rows and clicks whose clocks disagree
#: Why a check has no result whose numbers only a running gateway has, and how to have one. A look of the pipeline reads files alone.
NO_FAILURES = (
    "not measured: this look asked no running gateway; `thinktwice gateway status` says how many writes failed "
    "(filesystem.write_failed of its Envoy), and requests whose lines were not written count as unexplained rows"
)
NO_REPLICAS = (
    "not measured: this look asked no running gateway that checks the servers of every arm; `thinktwice experiment collect` asks "
    "the one of its machine, elsewhere compare the ready pods of the arms (membership_healthy of Envoy's clusters)"
)
NO_CLOCKS = "not measured: no logs and no clicks were joined, and clocks are compared by them"


class CheckResult(Frozen):
    """One check. ``passed`` is None if nothing was measured."""

    name: str
    passed: bool | None
    action: Action
    value: Number
    limit: Number
    reason: str


def check_results(file: ExperimentFile, evidence: Evidence, worst_p: float = 1.0) -> tuple[CheckResult, ...]:
    """All checks, each by its name in the experiment file.

    Args:
        worst_p: smallest p-value of the sample ratio so far: an alarm is permanent.
    """
    outcomes = {
        name: (passed, value, limit, reason) for name, passed, value, limit, reason in _all(file, evidence, worst_p)
    }
    actions = file.checks.model_dump()
    return tuple(
        CheckResult(name=name, action=actions[name], passed=passed, value=value, limit=limit, reason=reason)
        for name, (passed, value, limit, reason) in outcomes.items()
    )


CheckOutcome = tuple[str, bool | None, Number, Number, str]


def _all(file: ExperimentFile, evidence: Evidence, worst_p: float) -> Iterator[CheckOutcome]:
    yield _sample_ratio(file, evidence, worst_p)
    counts = evidence.exposures
    if counts is not None:
        yield from _join_checks(file, counts)
    else:
        names = (
            "exposure_loss",
            "unexplained_rows",
            "duplicate_requests",
            "assignment",
            "version_changed",
            "unit_in_two_arms",
            "fallback_share",
        )
        for name in names:
            yield name, None, None, None, "no logs were joined"
    yield _pre_exposure_bias(file, evidence)
    yield _replicas(file, evidence)
    failures = evidence.log_write_failures
    yield (
        "log_write_failures", None if failures is None else failures == 0, failures, 0,
        NO_FAILURES if failures is None else f"the access log failed to be written {failures} times",
    )  # fmt: skip
    yield _clocks(evidence)
    outcomes, limit = evidence.outcomes, file.limits.late_outcomes
    late = outcomes.late / outcomes.clicks if outcomes and outcomes.clicks else None
    yield (
        "late_outcomes", None if late is None else late <= limit, late, limit,
        "no outcomes were joined" if late is None else f"{late:.2%} of the clicks came after the window",
    )  # fmt: skip


def _sample_ratio(file: ExperimentFile, evidence: Evidence, worst_p: float) -> CheckOutcome:
    units = [getattr(evidence.arm(arm.name), "units", 0) for arm in file.arms]
    p = min(worst_p, sample_ratio(units, [1.0] * len(units)).p)
    shown = " / ".join(f"{u:,}" for u in units)
    return "sample_ratio", p >= ALPHA, p, ALPHA, f"units by arm are {shown} where equal ones are expected (p {p:.2g})"


def _join_checks(file: ExperimentFile, counts: JoinCounts) -> Iterator[CheckOutcome]:
    limits = file.limits
    arms = [a for a in counts.arms if a.experiment == file.name]
    worst = max(arms, key=lambda a: a.lost / max(a.answered, 1), default=None)
    loss = worst.lost / max(worst.answered, 1) if worst else 0.0
    of_arm = f" of the arm {worst.arm}" if worst else ""
    yield _below(
        "exposure_loss", loss, limits.exposure_loss, f"of the answered requests{of_arm} have no prediction row"
    )
    computed = counts.predicted - counts.shadow
    unexplained = counts.unexplained / max(computed, 1)
    yield _below("unexplained_rows", unexplained, limits.unexplained_rows, "of the predictions are in no access log")
    repeated = (counts.ambiguous + counts.repeated + counts.doubled) / max(counts.requests, 1)
    yield _below("duplicate_requests", repeated, limits.duplicate_requests, "of the request ids came more than once")
    misassigned = counts.wrong_arm + counts.wrong_bucket
    yield (
        "assignment",
        misassigned == 0,
        misassigned,
        0,
        f"{misassigned} rows are in another arm or bucket than the pure function says",
    )
    changed = [a for a in arms if len(a.versions) > 1]
    text = "; ".join(f"{a.arm} served {', '.join(a.versions)}" for a in changed) or "every arm served one version"
    yield "version_changed", not changed, len(changed), 0, text
    units = sum(a.units for a in arms)
    share_in_two_arms = counts.units_in_two_arms / max(units, 1)
    yield _below("unit_in_two_arms", share_in_two_arms, limits.unit_in_two_arms, "of the units were seen in two arms")
    falling = max(arms, key=lambda a: a.fallbacks / max(a.answered, 1), default=None)
    share = falling.fallbacks / max(falling.answered, 1) if falling else 0.0
    of_arm = f" of the arm {falling.arm}" if falling else ""
    yield _below("fallback_share", share, limits.fallback_share, f"of the answers{of_arm} came from another arm")


def _pre_exposure_bias(file: ExperimentFile, evidence: Evidence) -> CheckOutcome:
    metric = RATIOS[file.primary.metric]
    before = Metric(f"pre_{metric.numerator}", f"pre_{metric.denominator}" if metric.denominator else None)
    control = evidence.arm(file.control.name)
    smallest, limit = None, BIAS_P / len(file.treatments)
    for arm in file.treatments:
        treatment = evidence.arm(arm.name)
        if (
            not control
            or not treatment
            or not {before.numerator} <= set(control.sums.names) & set(treatment.sums.names)
        ):
            continue
        change = difference(control.sums.moments(), treatment.sums.moments(), before)
        if change.usable:
            p = two_sided_p(change.z)
            smallest = p if smallest is None else min(p, smallest)
    if smallest is None:
        return "pre_exposure_bias", None, None, limit, "there is no pre-period to compare"
    return (
        "pre_exposure_bias", smallest >= limit, smallest, limit,
        f"arms differ before the experiment began with p {smallest:.2g}",
    )  # fmt: skip


def _replicas(file: ExperimentFile, evidence: Evidence) -> CheckOutcome:
    replicas = {arm.name: getattr(evidence.arm(arm.name), "warm_replicas", None) for arm in file.arms}
    if any(n is None for n in replicas.values()):
        return "unequal_replicas", None, None, None, NO_REPLICAS
    numbers = [n for n in replicas.values() if n is not None]
    shown = ", ".join(f"{arm} {n}" for arm, n in replicas.items())
    return "unequal_replicas", len(set(numbers)) == 1, max(numbers) - min(numbers), 0, f"warm replicas: {shown}"


def _clocks(evidence: Evidence) -> CheckOutcome:
    shares = []
    if evidence.exposures:
        shares.append(evidence.exposures.skewed / max(evidence.exposures.joined, 1))
    if evidence.outcomes and evidence.outcomes.clicks:
        shares.append(evidence.outcomes.before_exposure / evidence.outcomes.clicks)
    if not shares:
        return "clock_skew", None, None, SKEW_SHARE, NO_CLOCKS
    return _below("clock_skew", max(shares), SKEW_SHARE, "of the rows or clicks lie outside their request's time")


def _below(name: str, value: float, limit: float, text: str) -> CheckOutcome:
    return name, value <= limit, value, limit, f"{value:.3%} {text} (limit {limit:.3%})"


def failed(results: Sequence[CheckResult], action: Action) -> list[CheckResult]:
    """Failed checks with this action."""
    return [r for r in results if r.passed is False and r.action == action]
