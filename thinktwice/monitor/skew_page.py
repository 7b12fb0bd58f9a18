"""The skew report: sentences, a table for the terminal, an HTML page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.monitor.skew import FieldSkew, SkewReport
from thinktwice.pages import templates


def verdict_lines(report: SkewReport, limit: float) -> list[str]:
    """The result in a few sentences."""
    skewed = report.skewed(limit)
    if skewed:
        lines = [f"skewed: {', '.join(f.name for f in skewed)} (more than {limit:.2%} of rows differ)"]
        lines += [f"{f.name}: {why}" for f in skewed[:5] if (why := reason(f))]
    elif all(f.rows == 0 for f in report.fields):
        lines = ["nothing could be compared: every row was served with defaults, or is unknown to the store as well"]
    else:
        lines = [f"no field is skewed: at most {limit:.2%} of the rows of a field differ from the store"]
    for entity, count in report.defaulted.items():
        if count:
            lines.append(f"{count:,} rows were served with defaults for the {entity} and are left out of its fields")
    for entity, count in report.cold_known.items():
        if count:
            lines.append(f"{count:,} rows were served as if the {entity} were unknown, and the store knew it")
    return lines


def reason(f: FieldSkew) -> str:
    """Causes of differing values, most frequent first; empty if nothing differs."""
    words = []
    if f.only_later:
        words.append((f.only_later, "served as missing, known to the store"))
    if f.only_served:
        words.append((f.only_served, "served, missing in the store"))
    if f.causes is not None:
        c = f.causes
        words += [
            (c.old, f"replaced before (median {_hours(c.hours_old)}): served late"),
            (c.early, f"true only later (median {_hours(c.hours_early)}): served from the future"),
            (c.never, f"never the value of this {f.entity}"),
        ]
    return "; ".join(f"{count:,} {word}" for count, word in sorted(words, reverse=True) if count)


def print_skew(console: Console, report: SkewReport, limit: float) -> None:
    """One row per field, the worst first, and the result in sentences."""
    names = ("compared", "differ", "only served", "only later", "old", "early", "never", "left out")
    columns = [Column("field", right=False), *(Column(name) for name in names), Column("", right=False)]
    records = []
    for f in sorted(report.fields, key=lambda f: -f.rate):
        c = f.causes
        cells = (
            f.name,
            f"{f.rows:,}",
            f"{f.rate:.2%}",
            _count(f.only_served),
            _count(f.only_later),
            *(("", "", "") if c is None else (_count(c.old), _count(c.early), _count(c.never))),
            _count(f.defaulted + f.cold),
            "skewed" if f.rate > limit else "",
        )
        records.append(Record(cells, "bold" if f.rate > limit else ""))
    title = f"{report.rows:,} served rows against the feature store at the same moments"
    print_table(console, columns, records, title=title)
    for line in verdict_lines(report, limit):
        say(console, line)


def render(report: SkewReport, limit: float) -> str:
    """The HTML page."""
    skewed = report.skewed(limit)
    worst = report.worst()
    tiles = [
        (f"{report.rows:,}", f"rows compared of {report.matching:,}"),
        (str(len(report.fields)), "fields"),
        (str(len(skewed)), "are skewed"),
        (f"{worst.rate:.2%}" if worst else "–", f"differ in the worst field{f', {worst.name}' if worst else ''}"),
    ]
    versions = ", ".join(f"{count:,} rows of {version}" for version, count in report.versions.items())
    others = ", ".join(f"{count:,} rows of {version}" for version, count in report.others.items())
    aside = f" Left out: {others} (raw rows, other fields or earlier times)." if others else ""
    html = templates.render(
        Path(__file__).parent,
        "skew_page.html",
        title="Skew of served features",
        subtitles=[f"served {report.window[0][:16]} to {report.window[1][:16]} UTC"],
        lines=[templates.sentence(line) for line in verdict_lines(report, limit)],
        skewed=skewed,
        tiles=tiles,
        fields=sorted(report.fields, key=lambda f: -f.rate),
        limit=limit,
        reason=reason,
        not_compared=_not_compared,
        aside=f" Compared: {versions}.{aside}",
    )
    return str(html)


def _not_compared(f: FieldSkew) -> str:
    return " · ".join(f"{count:,} {word}" for count, word in ((f.defaulted, "defaults"), (f.cold, "unknown")) if count)


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _hours(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f} h"
