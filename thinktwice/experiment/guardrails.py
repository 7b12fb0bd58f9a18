"""Analysis of evidence: guardrails. Their tests are always valid and made every time; they make no decision."""

from __future__ import annotations

import math
from collections.abc import Sequence

from thinktwice.experiment.analysis import arm_moments_of, enough_units, horizon_fraction, tuned_information
from thinktwice.experiment.evidence import ArmEvidence, Evidence, Number, known
from thinktwice.experiment.file import ExperimentFile, Guardrail
from thinktwice.experiment.metrics import RATIOS, quantile_share
from thinktwice.frozen import Frozen
from thinktwice.stats.difference import Metric, difference
from thinktwice.stats.moments import Moments
from thinktwice.stats.sequences import one_sided_radius

EVENTS = ("error_rate", "fallback_share")  # rates of events that may not occur at all


class GuardrailResult(Frozen):
    """Harm beyond the margin, in the metric's units; below 0 is within the margin.

    ``breached``: its lower bound is above 0. ``safe``: its upper bound is below 0 (non-inferiority shown). ``judged`` is
    false if data are too few or flagged. ``tuned``: information at which the sequence is tightest.
    """

    arm: str
    metric: str
    worse: str
    margin: float
    relative: bool
    control: Number
    treatment: Number
    excess: Number
    low: Number
    high: Number
    tuned: float
    judged: bool
    breached: bool
    safe: bool
    flags: tuple[str, ...] = ()


def guardrail_results(
    file: ExperimentFile, evidence: Evidence, first: Sequence[GuardrailResult]
) -> tuple[GuardrailResult, ...]:
    """Every guardrail of every treatment.

    Args:
        first: the first judged result of each guardrail, whose information tunes the sequence.
    """
    tuned = {(g.arm, g.metric): g.tuned for g in first}
    return tuple(
        _guardrail(file, evidence, guardrail, arm.name, tuned.get((arm.name, guardrail.metric)))
        for arm in file.treatments
        for guardrail in file.guardrails
    )


def _guardrail(
    file: ExperimentFile, evidence: Evidence, guardrail: Guardrail, arm: str, first: float | None
) -> GuardrailResult:
    control, treatment, flags = _quantile_pair(file, evidence, guardrail.metric, arm)
    (c, c_se), (t, t_se) = control, treatment
    # A quantile has no sums; how uneven units are is measured by their requests.
    weighed = RATIOS.get(guardrail.metric, RATIOS["error_rate"])
    if not flags and not enough_units(evidence, (file.control.name, arm), weighed):
        flags = ("few_effective_units",)
    share = guardrail.margin if guardrail.relative else 0.0
    absolute = 0.0 if guardrail.relative else guardrail.margin
    signs = {"increase": (1,), "decrease": (-1,), "either": (1, -1)}[guardrail.worse]
    # Harm beyond the margin: s (t - c) - margin |c| is s t - (s + share sign(c)) c.
    sign = -1.0 if c < 0 else 1.0
    excesses = []
    for s in signs:
        weight = s + share * sign
        excesses.append((s * t - weight * c - absolute, math.hypot(t_se, weight * c_se)))
    value, se = max(excesses)
    judged = not flags and math.isfinite(value) and se > 0
    low = high = None
    tuned = 0.0
    if judged:
        information = 1 / se**2
        fraction = min(horizon_fraction(file, evidence), 1.0)
        tuned = tuned_information(file, fraction, information) if first is None else first
        # Any breach rolls back, so all guardrails of all arms share α; safety requires all of them, so each has its own α.
        harm = file.guardrail_alpha / (len(signs) * len(file.guardrails) * len(file.treatments))
        low = value - one_sided_radius(information / tuned, harm) * se
        high = max(v + one_sided_radius(information / tuned, file.guardrail_alpha) * e for v, e in excesses)
    return GuardrailResult(
        arm=arm, metric=guardrail.metric, worse=guardrail.worse, margin=guardrail.margin, relative=guardrail.relative,
        control=known(c), treatment=known(t), excess=known(value), low=low, high=high, tuned=tuned, judged=judged,
        breached=low is not None and low > 0, safe=high is not None and high < 0,
        flags=flags if flags or judged else ("zero_variance",),
    )  # fmt: skip


def _quantile_pair(
    file: ExperimentFile, evidence: Evidence, metric: str, arm: str
) -> tuple[tuple[float, float], tuple[float, float], tuple[str, ...]]:
    """Value and standard error in control and treatment, and flags."""
    if quantile_share(metric) is None:
        moments = arm_moments_of(evidence, file.control.name), arm_moments_of(evidence, arm)
        if metric in EVENTS and (none := _without_events(*moments, RATIOS[metric])) is not None:
            return (0.0, none[0]), (0.0, none[1]), ()
        d = difference(*moments, RATIOS[metric])
        return (d.control.value, d.control.se), (d.treatment.value, d.treatment.se), d.flags
    quantiles = [_quantile(evidence.arm(name), metric) for name in (file.control.name, arm)]
    return quantiles[0][:2], quantiles[1][:2], tuple(dict.fromkeys((*quantiles[0][2], *quantiles[1][2])))


def _without_events(control: Moments, treatment: Moments, metric: Metric) -> tuple[float, float] | None:
    """Standard errors of both arms where neither has an event: as if each had one. None if one has.

    Without it, an error rate of 0 in both arms could never be shown to be within its margin.
    """
    errors = []
    for moments in (control, treatment):
        total = moments.num_units * float(moments.mean[moments.column(metric.denominator or metric.numerator)])
        if moments.num_units < 2 or not total > 0 or moments.mean[moments.column(metric.numerator)] != 0:
            return None
        errors.append(1 / total)
    return errors[0], errors[1]


def _quantile(arm: ArmEvidence | None, metric: str) -> tuple[float, float, tuple[str, ...]]:
    quantile = next((q for q in arm.quantiles if q.metric == metric), None) if arm else None
    if quantile is None or quantile.value is None or quantile.se is None:
        return math.nan, math.nan, (quantile.flags if quantile else ()) or ("no_rows",)
    return quantile.value, quantile.se, quantile.flags
