"""Skew for people: sentences, a table for the terminal, a page."""

from __future__ import annotations

from html import escape

from rich.console import Console

from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.monitor.skew import FieldSkew, SkewReport
from thinktwice.pages.page import card, page, table, tiles


def verdict_lines(report: SkewReport, limit: float) -> list[str]:
    """The finding in a few sentences."""
    found = report.skewed(limit)
    if found:
        lines = [f"skewed: {', '.join(f.name for f in found)} (more than {limit:.2%} of rows differ)"]
        lines += [f"{f.name}: {why}" for f in found[:5] if (why := reason(f))]
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
    """What the differing values were, most frequent first; empty where nothing differs."""
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
    """One row per field, the worst first, and the finding in sentences."""
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
    """The page."""
    found = report.skewed(limit)
    worst = report.worst()
    shown = [
        (f"{report.rows:,}", f"rows compared of {report.matching:,}"),
        (str(len(report.fields)), "fields"),
        (str(len(found)), "are skewed"),
        (f"{worst.rate:.2%}" if worst else "–", f"differ in the worst field{f', {worst.name}' if worst else ''}"),
    ]
    rows = [_row(f, limit) for f in sorted(report.fields, key=lambda f: -f.rate)]
    head = ("field", "compared", "differ", "not compared", "why")
    versions = ", ".join(f"{count:,} rows of {version}" for version, count in report.versions.items())
    others = ", ".join(f"{count:,} rows of {version}" for version, count in report.others.items())
    aside = f" Left out: {others} (raw rows, other fields or earlier times)." if others else ""
    body = [
        tiles(shown),
        card(
            "Fields", "Rows whose served value differs from what the store says of the same moment.", table(head, rows)
        ),
        card(
            "How to read this",
            "Every row is looked up again at the instant at which it was served, by the join that makes training rows. Texts and lists "
            "must be equal, numbers to one in a million. Replaced before: materialize more often. True only later: a feature is "
            "computed with data from after the request. Never the value: another row's or another field's, or computed otherwise. "
            f"Not compared are rows served with defaults and rows that the store does not know either. Compared: {versions}.{aside}",
            "",
        ),
    ]
    lines = [line[:1].upper() + line[1:] + "." for line in verdict_lines(report, limit)]
    subtitle = f"served {report.window[0][:16]} to {report.window[1][:16]} UTC"
    return page("Skew of served features", subtitle, lines, not found, body)


def _row(f: FieldSkew, limit: float) -> str:
    style = " class='bad'" if f.rate > limit else ""
    aside = " · ".join(f"{count:,} {word}" for count, word in ((f.defaulted, "defaults"), (f.cold, "unknown")) if count)
    return (
        f"<tr><td>{escape(f.name)}<small>{escape(f.entity)}</small></td><td>{f.rows:,}</td>"
        f"<td><span{style}>{f.rate:.2%}</span><small>{f.mismatches:,} rows</small></td>"
        f"<td>{escape(aside)}</td><td class='left'>{escape(reason(f))}</td></tr>"
    )


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _hours(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f} h"
