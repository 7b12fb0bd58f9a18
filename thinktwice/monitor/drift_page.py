"""The drift report: sentences, a table for the terminal, an HTML page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.monitor.drift import PSI_ALERT, DriftReport, Shift
from thinktwice.monitor.feedback import FeedbackAssumption
from thinktwice.pages import templates
from thinktwice.pages.charts import Series
from thinktwice.pages.charts_bars import LIVE, PALE, SOFT, bars
from thinktwice.pages.drawing import Drawing
from thinktwice.stats.distances import Distance

COLORS = {"training": PALE, "validation": SOFT, "live": LIVE}


def verdict_lines(report: DriftReport) -> list[str]:
    """The result in a few sentences."""
    drifted = report.drifted
    if not drifted:
        lines = [f"nothing has drifted: no judged index is above {report.threshold:g} and above what chance gives"]
    else:
        lines = [f"drifted: {', '.join(m.title for m in drifted)}"]
    unjudged = [m for m in report.moved if m.unjudged.startswith("only")]
    if unjudged:
        lines.append(f"nothing was judged: {unjudged[0].unjudged} are too few to estimate the effect of chance")
    opinion = next((m for m in report.moved if m.what == "score" and m.name == "second opinion"), None)
    if opinion is not None:
        _, before, now = opinion.facts[0]
        lines.append(f"rows with a second opinion: {before:.1%} on validation, {now:.1%} now")
    if report.feedback is not None:
        lines.append(feedback_line(report.feedback))
    return lines


def feedback_line(assumption: FeedbackAssumption) -> str:
    """Whether outcomes arrive within the delay that training assumed."""
    if not assumption.late and not assumption.lost:
        return f"feedback: all {assumption.in_time:,} clicks came within feedback_delay"
    return (
        f"feedback: {assumption.broken_share:.2%} of clicks break the assumption of feedback_delay ({assumption.late:,} came later, {assumption.lost:,} after "
        "the window was closed): train with a longer delay if that is more than a few"
    )


def print_drift(console: Console, report: DriftReport) -> None:
    """One row per field, support and score, and the result in sentences."""
    columns = [
        Column("what", right=False),
        *(Column(name) for name in ("PSI training", "validation", "by chance", "up to", "JS")),
        Column("before → now", right=False, wraps=True),
        Column("", right=False, wraps=True),
    ]
    records = []
    for m in report.moved:
        cells = (
            m.title,
            _index(m.from_train),
            _index(m.from_valid),
            f"{m.nearer.expected:.3f}",
            f"{m.nearer.noise:.3f}",
            f"{m.nearer.js:.3f}",
            _facts(m),
            _word(m, report.threshold),
        )
        records.append(Record(cells, "bold" if m.drifted(report.threshold) else ""))
    first, last = (moment[:16] for moment in report.window)
    title = f"{report.rows:,} served rows of {report.requests:,} requests, {first} to {last}"
    print_table(console, columns, records, title=title)
    for line in verdict_lines(report):
        say(console, line)


def render(report: DriftReport) -> str:
    """The HTML page."""
    drifted = report.drifted
    tiles = [
        (f"{report.rows:,}", f"rows compared of {report.matching:,}"),
        (f"{report.requests:,}", f"requests, {report.clusters:,} users or requests apart"),
        (str(len(drifted)), "have drifted"),
    ]
    for m in report.moved:
        if m.what == "score" and m.name in ("probability", "second opinion", "uncertainty"):
            word, before, now = m.facts[0]
            tiles.append((f"{before:.3f} | {now:.3f}", f"{m.name}, {word}, validation | now"))
    parts = []
    for kind, title, meaning in (
        ("values", "Fields", "Shares of rows by value, by bucket of the encoder, by length of a sequence or vector."),
        (
            "support",
            "How often training saw the values",
            "Rows by the number of training rows that had the same value: a shift to the left means rarer values.",
        ),
        ("score", "Scores", "What the model and its test-time work answer, in the quantiles of validation."),
    ):
        moved = [m for m in report.moved if m.what == kind]
        if moved:
            parts.append((title, meaning, moved))
    others = ", ".join(f"{count:,} rows of {version}" for version, count in sorted(report.others.items()))
    html = templates.render(
        Path(__file__).parent,
        "drift_page.html",
        title=f"Drift of {report.model_version}",
        subtitles=[f"served {report.window[0][:16]} to {report.window[1][:16]} UTC · bundle {report.bundle_hash[:12]}"],
        report=report,
        lines=[templates.sentence(line) for line in verdict_lines(report)],
        tiles=tiles,
        parts=parts,
        names=[Series(name, color, ()) for name, color in COLORS.items()],
        index=_index,
        facts=_facts,
        word=_word,
        drawn=_bars,
        aside=f" Not compared: {others} (another bundle, or an earlier time)." if others else "",
    )
    return str(html)


def _bars(m: Shift) -> Drawing:
    shares = {"training": m.train, "validation": m.valid, "live": m.live}
    return bars(m.labels, [(name, color, shares[name]) for name, color in COLORS.items() if shares[name]])


def _index(distance: Distance | None) -> str:
    return "" if distance is None else f"{distance.psi:.3f}"


def _facts(m: Shift) -> str:
    if m.what == "score":
        return ", ".join(f"{word} {before:.3f} → {now:.3f}" for word, before, now in m.facts)
    return ", ".join(f"{word} {before:.1%} → {now:.1%}" for word, before, now in m.facts if before or now)


def _word(m: Shift, threshold: float) -> str:
    if m.drifted(threshold):
        return "drifted much" if m.nearer.psi > PSI_ALERT else "drifted"
    return f"not judged: {m.unjudged}" if m.unjudged else ""
