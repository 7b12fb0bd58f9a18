"""Analysis of evidence: effect on the primary metric, and slices. It makes no decision.

The primary metric is tested at *looks*. Evidence counts as a look when at least half the planned distance to the previous
look has passed, the minimums are reached and the information has grown; evidence in between moves no boundary and spends no
α. Guardrails are in ``guardrails.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from thinktwice.experiment.evidence import Evidence, Number, known
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.metrics import RATIOS, SUMS
from thinktwice.experiment.remaining import units_fraction
from thinktwice.frozen import Frozen
from thinktwice.stats.difference import (
    Difference,
    Metric,
    difference,
    effective_units,
    relative_change,
    two_sided_p,
    two_sided_quantile,
)
from thinktwice.stats.group_sequential import CLOSEST, at_stop, boundaries, repeated_p, spent_by
from thinktwice.stats.moments import Moments
from thinktwice.stats.multiple import holm
from thinktwice.stats.sequences import always_valid_p, two_sided_radius

EFFECTIVE_UNITS = 100  # of each arm; with fewer, a few very active users dominate the average, and nothing is tested
OPEN_END = 4.0  # without a horizon, a sequence is tightest at this multiple of the first look's information

Effect = Literal["better", "worse", "unclear"]


class ArmLook(Frozen):
    """The part of a look that later looks need: the statistic and its information."""

    arm: str
    z: float
    information: float


class Look(Frozen):
    """One look at the primary metric; ``fraction`` is the fraction of the horizon (unused without one)."""

    fraction: float
    final: bool
    arms: tuple[ArmLook, ...]

    def arm(self, name: str) -> ArmLook | None:
        return next((a for a in self.arms if a.arm == name), None)


class Adjusted(Frozen):
    """Estimate, interval and p-value adjusted for stopping at this look (stage-wise ordering)."""

    p: float
    value: float
    low: float
    high: float


class PrimaryResult(Frozen):
    """Treatment against control. Intervals are valid at every look (repeated), simultaneously for all treatments.

    Attributes:
        value, se, low, high: absolute difference.
        relative, relative_low, relative_high: as a share of the control's magnitude; null if the baseline is near 0.
        p: valid at this look whatever the results of earlier ones. ``adjusted_p``: Holm over all treatments.
        boundary: half width of the interval in standard errors; null if nothing is tested yet.
        at_stop: only for a group sequential test, if this look decides.
    """

    arm: str
    metric: str
    units: int
    control: Number
    treatment: Number
    value: Number
    se: Number
    low: Number
    high: Number
    relative: Number
    relative_low: Number
    relative_high: Number
    p: float
    adjusted_p: float
    boundary: Number
    variance_reduction: float
    verdict: Effect
    at_stop: Adjusted | None = None
    flags: tuple[str, ...] = ()


class SliceResult(Frozen):
    """The primary metric within one value of a declared slice: for explanation, not for decisions."""

    slice: str
    value: str
    arm: str
    units: int
    difference: Number
    low: Number
    high: Number
    p: float
    adjusted_p: float
    flags: tuple[str, ...] = ()


def due_look(file: ExperimentFile, evidence: Evidence, history: Sequence[Look]) -> tuple[float, bool] | None:
    """Fraction of the horizon, and whether this is the last look; None when no look is due."""
    if any(look.final for look in history) or not minimum_reached(file, evidence):
        return None
    if file.horizon is None:
        return 0.0, False
    last = history[-1].fraction if history else 0.0
    fraction = horizon_fraction(file, evidence)
    final = evidence.days >= file.horizon.days or fraction >= 1
    if final:
        return 1.0, True
    if fraction - last < 0.5 / file.horizon.looks:
        return None
    return fraction, False


def horizon_fraction(file: ExperimentFile, evidence: Evidence) -> float:
    """How much of the horizon has passed: of its units if they are planned, else of its days; 0 without a horizon."""
    if file.horizon is None:
        return 0.0
    of_units = units_fraction(file, [a.units for a in evidence.arms])
    return evidence.days / file.horizon.days if of_units is None else of_units


def horizon_passed(file: ExperimentFile, evidence: Evidence) -> bool:
    """Whether nothing planned is left: the days are over, or the planned units are enrolled and the minimums reached.

    It depends on no data but the number of units, so an experiment also ends whose data cannot be tested.
    """
    if file.horizon is None:
        return False
    enrolled = horizon_fraction(file, evidence) >= 1 and minimum_reached(file, evidence)
    return evidence.days >= file.horizon.days or enrolled


def minimum_reached(file: ExperimentFile, evidence: Evidence) -> bool:
    """Whether the minimum days and units of every arm are reached."""
    units = [a.units for arm in file.arms if (a := evidence.arm(arm.name))]
    return evidence.days >= file.minimum.days and len(units) == len(file.arms) and min(units) >= file.minimum.units


def primary_results(
    file: ExperimentFile, evidence: Evidence, history: Sequence[Look]
) -> tuple[Look | None, tuple[PrimaryResult, ...]]:
    """The primary metric of every treatment, and the look of this evidence (None if it is not a look).

    Without a look the estimates are current but nothing is tested: there is no interval, and p and verdict are those of the
    previous look (a rejected null hypothesis stays rejected while the estimate keeps its sign).
    """
    differences = {arm.name: _difference(file, evidence, arm.name) for arm in file.treatments}
    enough = all(enough_units(evidence, (file.control.name, name), RATIOS[file.primary.metric]) for name in differences)
    due = due_look(file, evidence, history)
    look = None
    if due is not None and enough and all(d.usable for d in differences.values()):
        look = _look(differences, *due, history)
    looks = [*history, *((look,) if look else ())]
    level = file.alpha / len(differences)
    tests = {name: _test(file, name, looks, level) if looks else (None, 1.0) for name in differences}
    adjusted = holm([p for _, p in tests.values()])
    results = []
    for (name, d), after in zip(differences.items(), adjusted, strict=True):
        boundary, p = tests[name]
        result = _primary(file, evidence, name, d, boundary if look else None, p, float(after), enough)
        if look is not None and result.verdict != "unclear" and file.test == "group_sequential":
            result = result.model_copy(update={"at_stop": _at_stop(name, looks, level)})
        results.append(result)
    return look, tuple(results)


def slice_results(file: ExperimentFile, evidence: Evidence) -> tuple[SliceResult, ...]:
    """The primary metric by declared slice, from the current data with fixed intervals, corrected over all slices by Holm.

    Read it only at the end: under repeated looks these p-values are too small.
    """
    metric = RATIOS[file.primary.metric]
    by_place = {(s.slice, s.value, s.arm): s.sums.moments() for s in evidence.slices}
    slices = sorted({(s.slice, s.value) for s in evidence.slices if s.slice in file.slices})
    raw = []
    for name, value in slices:
        for arm in file.treatments:
            control, treatment = by_place.get((name, value, file.control.name)), by_place.get((name, value, arm.name))
            present = control or treatment
            if present is None:
                continue
            empty = Moments.empty(present.names)
            raw.append((name, value, arm.name, difference(control or empty, treatment or empty, metric)))
    adjusted = holm([two_sided_p(d.z) if d.usable else math.nan for *_, d in raw])
    reach = two_sided_quantile(file.alpha / max(len(raw), 1))
    return tuple(
        SliceResult(
            slice=name, value=value, arm=arm, units=d.control.num_units + d.treatment.num_units, difference=known(d.value),
            low=known(d.value - reach * d.se), high=known(d.value + reach * d.se),
            p=two_sided_p(d.z) if d.usable else 1.0, adjusted_p=float(p), flags=d.flags,
        )
        for (name, value, arm, d), p in zip(raw, adjusted, strict=True)
    )  # fmt: skip


def _difference(file: ExperimentFile, evidence: Evidence, arm: str) -> Difference:
    control, treatment = (arm_moments_of(evidence, name) for name in (file.control.name, arm))
    metric = RATIOS[file.primary.metric]
    bottom = f"pre_{metric.denominator}" if metric.denominator else None
    before = Metric(f"pre_{metric.numerator}", bottom)
    return difference(control, treatment, metric, [before] if before.numerator in control.names else [])


def arm_moments_of(evidence: Evidence, arm: str) -> Moments:
    arm_evidence = evidence.arm(arm)
    if arm_evidence is not None and arm_evidence.sums.names:
        return arm_evidence.sums.moments()
    names = next((a.sums.names for a in evidence.arms if a.sums.names), ())
    return Moments.empty(names or SUMS)


def enough_units(evidence: Evidence, arms: Sequence[str], metric: Metric) -> bool:
    """Whether every arm has enough effective units: a few very active ones must not dominate its average."""
    return min(effective_units(arm_moments_of(evidence, name), metric) for name in arms) >= EFFECTIVE_UNITS


def _look(differences: dict[str, Difference], fraction: float, final: bool, history: Sequence[Look]) -> Look | None:
    """The look of these differences; None if information has hardly grown since the last look.

    Information stops growing when the same users return and differences between users are the only noise. The last look is
    made anyway, as the smallest step.
    """
    least = {a.arm: a.information / (1 - 2 * CLOSEST) for a in history[-1].arms} if history else {}
    if not final and any(d.information < least.get(name, 0.0) for name, d in differences.items()):
        return None
    arms = tuple(
        ArmLook(arm=n, z=d.z, information=max(d.information, least.get(n, 0.0))) for n, d in differences.items()
    )
    return Look(fraction=fraction, final=final, arms=arms)


def _test(file: ExperimentFile, arm: str, looks: Sequence[Look], level: float) -> tuple[float | None, float]:
    """Boundary of |z| at level ``level`` and valid p-value at the last of these looks."""
    arm_looks = [a for look in looks if (a := look.arm(arm))]
    information, z = [a.information for a in arm_looks], [a.z for a in arm_looks]
    if file.test == "fixed":
        return (two_sided_quantile(level), two_sided_p(z[-1])) if looks[-1].final else (None, 1.0)
    if file.test == "sequence":
        tuned = tuned_information(file, looks[0].fraction, information[0])
        p = min(always_valid_p(v, i / tuned, level) for v, i in zip(z, information, strict=True))
        return two_sided_radius(information[-1] / tuned, level), p
    fractions, final = [look.fraction for look in looks], looks[-1].final
    bound = boundaries(tuple(information), spent_by(fractions, level, final))[-1]
    return (bound if math.isfinite(bound) else None), repeated_p(information, fractions, z, final)


def tuned_information(file: ExperimentFile, fraction: float, information: float) -> float:
    """Information at which a sequence is tightest: that expected at the horizon at the pace of the first look, or a
    multiple of the first look's."""
    return information / fraction if file.horizon is not None and fraction > 0 else OPEN_END * information


def _primary(
    file: ExperimentFile,
    evidence: Evidence,
    name: str,
    d: Difference,
    boundary: float | None,
    p: float,
    adjusted_p: float,
    enough: bool,
) -> PrimaryResult:
    reach = math.inf if boundary is None else boundary
    relative, low, high, flags = relative_change(d, reach) if boundary is not None else _unbounded(d)
    verdict: Effect = "unclear"
    if adjusted_p < file.alpha and d.usable and d.value:
        improved = (d.value > 0) == (file.primary.better == "increase")
        verdict = "better" if improved else "worse"
    return PrimaryResult(
        arm=name, metric=file.primary.metric, units=getattr(evidence.arm(name), "units", 0),
        control=known(d.control.value), treatment=known(d.treatment.value), value=known(d.value), se=known(d.se),
        low=known(d.value - reach * d.se), high=known(d.value + reach * d.se), relative=known(relative),
        relative_low=known(low), relative_high=known(high), p=p, adjusted_p=adjusted_p, boundary=boundary,
        variance_reduction=d.variance_reduction, verdict=verdict,
        flags=tuple(dict.fromkeys((*d.flags, *flags, *(() if enough or d.flags else ("few_effective_units",))))),
    )  # fmt: skip


def _unbounded(d: Difference) -> tuple[float, float, float, tuple[str, ...]]:
    value = d.value / abs(d.control.value) if d.usable and d.control.value else math.nan
    return value, -math.inf, math.inf, ()


def _at_stop(arm: str, looks: Sequence[Look], level: float) -> Adjusted | None:
    """The adjusted result if the last look is the first that crosses."""
    arm_looks = [a for look in looks if (a := look.arm(arm))]
    information = tuple(a.information for a in arm_looks)
    bounds = boundaries(information, spent_by([look.fraction for look in looks], level, looks[-1].final))
    if any(abs(a.z) >= b for a, b in zip(arm_looks[:-1], bounds[:-1], strict=True)):
        return None
    estimate = at_stop(information, bounds, arm_looks[-1].z, level)
    return Adjusted(p=estimate.p, value=estimate.value, low=estimate.low, high=estimate.high)
