"""The HTML report of an experiment: one file without scripts and external resources, readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from thinktwice.experiment.analysis import PrimaryResult
from thinktwice.experiment.checks import CheckResult
from thinktwice.experiment.guardrails import GuardrailResult
from thinktwice.experiment.metrics import RATIOS
from thinktwice.experiment.report import ExperimentReport, damaged_remark
from thinktwice.frozen import Frozen
from thinktwice.pages import templates
from thinktwice.pages.charts import Mark, Series, line_chart

SECONDS_A_DAY = 86_400.0
CHART_WIDTH = 420  # as wide as a phone can show whole; two fit side by side on a desk
EFFECT, TRUTH, CONTROL, RATIO = "#2f6fdb", "#3a9b6a", "#7a818c", "#d9962b"
WORDS = {
    "promote": "Promote",
    "roll_back": "Roll back",
    "ramp": "Raise the coverage",
    "hold": "Hold",
}


class KnownEffect(Frozen):
    """The true relative effect of a simulation at one look, with its own interval."""

    value: float
    low: float
    high: float


class PageExtras(Frozen):
    """What a page shows in addition to the report.

    Attributes:
        known: true effects by look, for a simulation; null where not measured yet.
        remarks: sentences below the verdict.
    """

    known: tuple[KnownEffect | None, ...] = ()
    remarks: tuple[str, ...] = ()


def render_report(report: ExperimentReport, extras: PageExtras | None = None) -> str:
    """The page."""
    extras = extras or PageExtras()
    decision = report.decision
    title = f"Experiment {report.experiment.name}"
    lines = [f"{WORDS[decision.action]}{f' {decision.arm}' if decision.arm else ''} ({report.standing})"]
    lines += [*map(_readable, decision.reasons), *extras.remarks]
    if report.damaged_files:
        lines.append(damaged_remark(report.damaged_files))
    unit, scale = _time_unit(report.days)
    known = [*extras.known, *[None] * (len(report.points) - len(extras.known))]
    effects = _effects(report, known, scale)
    html = templates.render(
        Path(__file__).parent,
        "report_page.html",
        title=title,
        subtitles=[
            f"{report.days * scale:.1f} {unit}, coverage {report.points[-1].coverage:.0%}, {report.method.replace('_', ' ')}, "
            f"α {report.experiment.alpha:g}; up to {report.at:%Y-%m-%d %H:%M:%S} UTC"
        ],
        report=report,
        lines=[templates.sentence(line) for line in lines],
        kind={"promote": "on", "roll_back": "fail"}.get(decision.action, "warn"),
        tiles=_tiles(report, known[-1] if known else None),
        effects=effects,
        effect_chart=line_chart(effects, x_label=unit, y_label="relative effect (%)", width=CHART_WIDTH),
        users=_users(report, scale),
        users_chart=line_chart(_users(report, scale), x_label=unit, y_label="enrolled users", width=CHART_WIDTH),
        known=known,
        unit=unit,
        scale=scale,
        effect=_effect,
        percent=_percent,
        guardrail=_guardrail,
        state=_state,
        verdict=_verdict,
    )
    return str(html)


def _readable(reason: str) -> str:
    """A reason with names of metrics as words, and numbers of three digits; the record has all of them."""
    for name in RATIOS:
        reason = re.sub(rf"\b{name}\b", "CTR" if name == "ctr" else name.replace("_", " "), reason)
    reason = re.sub(r"\blatency_p(?=\d)", "latency p", reason)
    return re.sub(
        r"[+-]?\d+\.\d{4,}(?:e[+-]?\d+)?", lambda m: f"{float(m[0]):{'+' if m[0][0] in '+-' else ''}.3g}", reason
    )


def _time_unit(days: float) -> tuple[str, float]:
    """Unit of the time axis, and its number in a day."""
    if days < 0.02:
        return "seconds", SECONDS_A_DAY
    return ("hours", 24.0) if days < 2 else ("days", 1.0)


def _effects(report: ExperimentReport, known: Sequence[KnownEffect | None], scale: float) -> list[Series]:
    """Relative effects in percent over time, with the true effect of a simulation beside them."""
    series = []
    for index, arm in enumerate(report.experiment.treatments):
        marks = []
        for point in report.points:
            result = next((r for r in point.primary if r.arm == arm.name), None)
            if result is not None and result.relative is not None:
                low, high = (None if v is None else 100 * v for v in (result.relative_low, result.relative_high))
                marks.append(Mark(point.days * scale, 100 * result.relative, low, high, _effect(result)))
        series.append(Series(arm.name, (EFFECT, RATIO)[index % 2], marks))
    truth = [
        Mark(
            point.days * scale,
            100 * k.value,
            100 * k.low,
            100 * k.high,
            f"{k.value:+.2%} ({k.low:+.2%} to {k.high:+.2%})",
        )
        for point, k in zip(report.points, known, strict=False)
        if k is not None
    ]
    if truth:
        series.append(Series("true effect", TRUTH, truth, dashed=True, band=True))
    return series


def _users(report: ExperimentReport, scale: float) -> list[Series]:
    colors = (CONTROL, EFFECT, RATIO, TRUTH)
    return [
        Series(
            arm.name,
            colors[i % len(colors)],
            [Mark(p.days * scale, float(p.units[i]), tip=f"{p.units[i]:,}") for p in report.points],
        )
        for i, arm in enumerate(report.experiment.arms)
    ]


def _tiles(report: ExperimentReport, known: KnownEffect | None) -> list[tuple[str, str]]:
    tiles = []
    for result in report.primary:
        tiles.append((_percent(result.relative), f"{result.metric} of {result.arm}, relative to control"))
        interval = f"{_percent(result.relative_low)} to {_percent(result.relative_high)}"
        tiles.append((interval, f"interval, valid at every look ({1 - report.experiment.alpha:.0%})"))
    if known is not None:
        tiles.append((_percent(known.value), "true effect of the simulation"))
    ratio = next((c for c in report.checks if c.name == "sample_ratio"), None)
    if ratio is not None and ratio.value is not None:
        tiles.append((f"{ratio.value:.2f}", "p-value of the sample ratio"))
    units = " / ".join(f"{arm.units:,}" for arm in report.arms)
    tiles.append((units, f"users: {' / '.join(arm.arm for arm in report.arms)}"))
    return tiles


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}"


def _effect(result: PrimaryResult) -> str:
    if result.relative is None:
        return "–"
    if result.relative_low is None or result.relative_high is None:
        return f"{result.relative:+.2%}"
    return f"{result.relative:+.2%} ({result.relative_low:+.2%} to {result.relative_high:+.2%})"


def _guardrail(result: GuardrailResult) -> str:
    margin = f"{result.margin:.1%} of control" if result.relative else f"{result.margin:g}"
    return (
        f"worse if it goes {result.worse.replace('increase', 'up').replace('decrease', 'down')} by more than {margin}"
    )


def _state(result: GuardrailResult) -> tuple[str, str]:
    """Text and kind of a guardrail's pill."""
    if result.breached:
        return "breached", "critical"
    if result.safe:
        return "within its margin", "holds"
    return ("not shown yet", "warning") if result.judged else ("too few data", "")


def _verdict(check: CheckResult) -> tuple[str, str]:
    if check.passed is None:
        return "not measured", ""
    return ("passed", "holds") if check.passed else (f"failed: {check.action.replace('_', ' ')}", "critical")
