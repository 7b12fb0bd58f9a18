"""The validation report: one HTML file with inline style and inline SVG, no scripts and nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from components.data.validate.suite import Finding
from thinktwice.validate.drift import MISSING, OTHER
from thinktwice.validate.profile import WHOLE, Profile

if TYPE_CHECKING:
    from components.data.validate.verdict import Verdict

_STYLE = """
:root{--ink:#1d2430;--soft:#667085;--line:#e4e7ec;--paper:#fff;--ground:#f6f7f9;--good:#0f7b54;--good-soft:#e3f5ed;
--bad:#b42318;--bad-soft:#fdecea;--warn:#93580a;--warn-soft:#fdf3dc;--first:#9db4d6;--second:#2f5fb3}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:21px;margin:0 0 2px}h2{font-size:16px;margin:0 0 4px}p{margin:4px 0}.soft{color:var(--soft)}.small{font-size:13px}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin-top:16px;overflow-x:auto}
.verdict{border-left:8px solid var(--good);}.verdict.bad{border-left-color:var(--bad)}
.verdict strong{font-size:24px;color:var(--good);display:block;line-height:1.25}.verdict.bad strong{color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:16px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.card b{display:block;font-size:22px;font-variant-numeric:tabular-nums}.card span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;width:100%;margin-top:10px;font-size:13.5px}th{text-align:left;font-weight:600;color:var(--soft);
font-size:12px;border-bottom:1px solid var(--line);padding:6px 10px 6px 0;white-space:nowrap}
td{border-bottom:1px solid var(--line);padding:7px 10px 7px 0;vertical-align:top}tr:last-child td{border-bottom:0}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.pill{display:inline-block;border-radius:99px;padding:1px 9px;
font-size:12px;font-weight:600;white-space:nowrap}.critical{background:var(--bad-soft);color:var(--bad)}
.warning{background:var(--warn-soft);color:var(--warn)}.ok{background:var(--good-soft);color:var(--good)}
code{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;color:#475467;overflow-wrap:anywhere}
.id{white-space:nowrap}summary{cursor:pointer;color:var(--soft);margin-top:10px}.bar{height:10px;border-radius:5px;background:#eceff3;overflow:hidden;min-width:70px}
.bar i{display:block;height:100%;background:var(--second);border-radius:5px}.key{display:inline-block;width:10px;height:10px;
border-radius:2px;margin:0 5px 0 12px}svg{display:block}.equation{font-size:17px;font-variant-numeric:tabular-nums;margin:8px 0}
@media print{body{background:#fff}section,.card{break-inside:avoid}}
"""


def render(verdict: Verdict, profile: Profile, info: Mapping[str, Any], samples: Mapping[str, list[str]]) -> str:
    """The whole page. ``info`` is clean.json; ``samples`` are row ids per reason."""
    title = f"Validation of {info['schema_name']}"
    parts = [
        _head(verdict, info, title),
        _cards(verdict, profile),
        _conservation(verdict, info),
        _findings(verdict.findings, verdict.not_evaluated),
        _quarantine(verdict, samples),
        _timeline(profile.table),
        _profile(profile),
        _notes(),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(verdict: Verdict, info: Mapping[str, Any], title: str) -> str:
    word, _, rest = verdict.headline.partition(": ")
    span = ""
    if info["first_event"] and not info["last_event"].startswith("1970"):  # relative times say nothing to a reader
        span = f" · events from {info['first_event'][:10]} to {info['last_event'][:10]}"
    facts = f"snapshot {info['snapshot_id'] or 'unnamed'} · {info['rule_set_version']}{span}"
    read = "".join(f'<p class="soft small">{escape(line)}</p>' for line in info.get("read", []))
    broken = [f for f in verdict.findings if not f.passed]
    lines = "".join(f"<li>{_pill(f)} {escape(f.description)}: {escape(f.observed)}</li>" for f in broken[:6])
    more = f"<li class=soft>and {len(broken) - 6} more, below</li>" if len(broken) > 6 else ""
    listed = (
        f'<p class="soft small">The rules that did not hold:</p><ul class=small>{lines}{more}</ul>' if broken else ""
    )
    return (
        f"<h1>{escape(title)}</h1><p class='soft small'>{escape(facts)}</p>{read}"
        f'<section class="verdict{"" if verdict.passed else " bad"}"><strong>{"Passed" if word == "passed" else "Failed"}</strong>'
        f"<p>{escape(rest[:1].upper() + rest[1:])}.</p>{listed}</section>"
    )


def _cards(verdict: Verdict, profile: Profile) -> str:
    split, metrics = verdict.split, verdict.metrics
    fields = profile.table.filter(pl.col("partition") == WHOLE)
    rate = f"{metrics['click_rate']:.2%}" if "click_rate" in metrics else "–"
    shown = [
        (f"{split.rows_in:,}", "rows in"),
        (f"{split.rows_clean:,}", "clean"),
        (f"{split.rows_quarantined:,}", f"quarantined ({metrics['quarantined_share']:.3%})"),
        (rate, "click rate"),
        (str(fields.height), "fields profiled"),
        (f"{metrics['critical']:.0f} / {metrics['warnings']:.0f}", "critical / warnings"),
    ]
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{b}</b><span>{escape(s)}</span></div>' for b, s in shown)
        + "</div>"
    )


def _conservation(verdict: Verdict, info: Mapping[str, Any]) -> str:
    split = verdict.split
    share = split.rows_clean / split.rows_in
    return (
        "<section><h2>Nothing was lost</h2>"
        f'<p class="equation">{split.rows_in:,} in &nbsp;=&nbsp; {split.rows_clean:,} clean &nbsp;+&nbsp; '
        f"{split.rows_quarantined:,} quarantined</p>{_bar(share)}"
        f'<p class="small soft">The row ids of both files, read back and sorted, equal those of the input; no id occurs twice. '
        f"Order-free key hash: <code>{escape(info['key_hash_in'])}</code> in, <code>{escape(info['key_hash_out'])}</code> out.</p></section>"
    )


def _pill(finding: Finding) -> str:
    if finding.passed:
        return '<span class="pill ok">holds</span>'
    return f'<span class="pill {escape(finding.severity)}">{escape(finding.severity)}</span>'


def _findings(findings: list[Finding], not_evaluated: Mapping[str, str]) -> str:
    broken = [f for f in findings if not f.passed]
    held = [f for f in findings if f.passed]
    body = _finding_table(broken, samples=True) if broken else '<p class="soft">No rule is broken.</p>'
    more = (
        f"<details{'' if broken else ' open'}><summary>{len(held)} rules that hold</summary>{_finding_table(held, samples=False)}</details>"
        if held
        else ""
    )
    idle = "".join(
        f"<tr><td class=id><code>{escape(rule)}</code></td><td>not evaluated: {escape(why)}</td></tr>"
        for rule, why in not_evaluated.items()
    )
    told = f"{len(held)} of {len(findings)} evaluated rules hold."
    if idle:
        told += f" {len(not_evaluated)} rules were not evaluated."
        more += f"<details><summary>{len(not_evaluated)} rules not evaluated</summary><table>{idle}</table></details>"
    return f"<section><h2>Rules</h2><p class='soft small'>{told}</p>{body}{more}</section>"


def _finding_table(findings: list[Finding], *, samples: bool) -> str:
    rows = []
    for f in findings:
        named = f"<br><span class=soft>{escape(f.fix)}</span>" if f.fix else ""
        named += f"<br>for example <code>{escape(f.example)}</code>" if samples and f.example else ""
        named += f"<br><code>{escape('  '.join(f.samples))}</code>" if samples and f.samples else ""
        rows.append(
            f"<tr><td>{_pill(f)}</td><td class=id><code>{escape(f.rule)}</code></td><td>{escape(f.description)}{named}</td>"
            f"<td class=n>{escape(f.observed)}</td><td class=n>{escape(f.bound)}</td></tr>"
        )
    head = "<tr><th></th><th>rule</th><th>what must hold</th><th class=n>observed</th><th class=n>bound</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _quarantine(verdict: Verdict, samples: Mapping[str, list[str]]) -> str:
    reasons = sorted(verdict.split.reasons.items(), key=lambda item: (-item[1], item[0]))
    if not reasons:
        return ""
    most = reasons[0][1]
    budget = next(f.bound for f in verdict.findings if f.rule == "ledger:budget")
    rows = "".join(
        f"<tr><td><code>{escape(rule)}</code></td><td class=n>{count:,}</td><td style='width:24%'>{_bar(count / most)}</td>"
        f"<td><code>{escape('  '.join(samples.get(rule, [])[:3]))}</code></td></tr>"
        for rule, count in reasons
    )
    head = "<tr><th>reason</th><th class=n>rows</th><th></th><th>for example row_id</th></tr>"
    return (
        "<section><h2>Quarantine</h2><p class='soft small'>A row counts under each of its reasons. The untouched rows lie in "
        f"the quarantine folder and can be replayed under newer rules. Budget: {escape(budget)} of the rows.</p>"
        f"<table>{head}{rows}</table></section>"
    )


def _timeline(table: pl.DataFrame) -> str:
    """Rows (bars) and click rate (line) per slice of the log."""
    if not table.height:
        return ""
    first = table["feature"][0]
    slices = table.filter((pl.col("feature") == first) & (pl.col("partition") != WHOLE))
    if slices.height < 2:
        return ""
    width, height, left, base = 1060, 190, 8, 150
    step = (width - 2 * left) / slices.height
    most = max(slices["rows"].to_list())
    top_rate = max(slices["click_rate"].to_list()) or 1.0
    bars, points, labels = [], [], []
    every = max(1, slices.height // 8)
    for i, (name, rows, rate) in enumerate(slices.select("partition", "rows", "click_rate").iter_rows()):
        x, tall = left + i * step, max(1.0, rows / most * 120)
        title = f"<title>{escape(name)}: {rows:,} rows, click rate {rate:.2%}</title>"
        bars.append(
            f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{step * 0.78:.1f}" height="{tall:.1f}" rx="2" fill="#9db4d6">{title}</rect>'
        )
        points.append(f"{x + step * 0.39:.1f},{base - rate / top_rate * 110:.1f}")
        if i % every == 0 and x < width - 70:
            labels.append(f'<text x="{x:.1f}" y="{base + 18}" font-size="11" fill="#667085">{escape(name)}</text>')
    dots = "".join(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2.6" fill="#c4572e"/>' for p in points)
    line = f'<polyline points="{" ".join(points)}" fill="none" stroke="#c4572e" stroke-width="2"/>{dots}'
    scale = f'<text x="{left}" y="14" font-size="11" fill="#667085">highest bar {most:,} rows · highest point {top_rate:.2%}</text>'
    return (
        "<section><h2>Over time</h2><p class='soft small'><span class=key style='background:#9db4d6;margin-left:0'></span>rows"
        "<span class=key style='background:#c4572e'></span>click rate, per slice of whole days</p>"
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="rows and click rate over time">'
        f"{''.join(bars)}{line}{''.join(labels)}{scale}</svg></section>"
    )


def _profile(profile: Profile) -> str:
    whole = profile.table.filter(pl.col("partition") == WHOLE)
    if not whole.height:
        return "<section><h2>Fields</h2><p>There is no clean row to profile.</p></section>"
    rows = []
    for row in whole.iter_rows(named=True):
        numeric = row["minimum"] is not None
        if numeric:
            values = f"{row['minimum']:.4g} … <b>{row['median']:.4g}</b> … {row['maximum']:.4g}"
        else:
            values = f"{escape(str(row['top_value']))} <span class=soft>{row['top_share'] or 0:.1%}</span>"
            values += _bar(row["top_share"] or 0.0)
        shape = "" if row["kind"] == "key" else _histogram(profile.histograms[row["feature"]])
        rows.append(
            f"<tr><td><b>{escape(row['feature'])}</b><br><span class='soft small'>{escape(row['kind'])}</span></td>"
            f"<td class=n>{'about ' if numeric else ''}{row['distinct']:,}</td><td class=n>{row['null_share']:.2%}</td>"
            f"<td>{values}</td><td>{shape}</td><td class=n>{_or_dash(row['auc'])}</td>"
            f"<td class=n>{_or_dash(row['judged_psi'])}</td></tr>"
        )
    head = (
        "<tr><th>field</th><th class=n>distinct</th><th class=n>missing</th><th>most frequent, or min … median … max</th>"
        "<th>first and second half</th><th class=n>AUC alone</th><th class=n>PSI</th></tr>"
    )
    return (
        "<section><h2>Fields</h2><p class='soft small'>Shares of the (at most 20) most frequent values, or of quantile bins, in the "
        "<span class=key style='background:#9db4d6;margin-left:4px'></span>first and <span class=key style='background:#2f5fb3;margin-left:4px'>"
        f"</span>second half of the log. PSI is not judged for ids and fields of time.</p><table>{head}{''.join(rows)}</table></section>"
    )


def _histogram(histogram: Mapping[str, Any]) -> str:
    """Two thin bars per bin, first half beside second half. All other values together would dwarf the rest: left out."""
    bins = list(zip(histogram["labels"], histogram["first"], histogram["second"], strict=True))
    bins = [b for b in bins if b[0] != OTHER and (b[0] != MISSING or b[1] or b[2])]
    if not bins:
        return ""
    most = max((max(a, b) for _, a, b in bins), default=0.0) or 1.0
    step = min(14.0, 240 / len(bins))
    out = []
    for i, (label, first, second) in enumerate(bins):
        title = f"<title>{escape(label)}: {first:.2%}, then {second:.2%}</title>"
        for offset, share, color in ((0.0, first, "#9db4d6"), (step * 0.43, second, "#2f5fb3")):
            tall = share / most * 36
            x = i * step + offset
            out.append(
                f'<rect x="{x:.1f}" y="{38 - tall:.1f}" width="{step * 0.4:.1f}" height="{tall:.1f}" fill="{color}">{title}</rect>'
            )
    return f'<svg width="{step * len(bins):.0f}" height="39" role="img" aria-label="distribution">{"".join(out)}</svg>'


def _notes() -> str:
    return (
        "<section><h2>How to read this</h2><p class=small>A row that breaks any row rule is quarantined; that alone is a warning. "
        "The log fails when a critical rule is broken: rows lost, more quarantined than the budget, a field that separates clicks "
        "from non-clicks by itself, or strong drift from a reference log. <b>AUC alone</b> is learned from one half of the rows and "
        "measured on the other: 0.5 says nothing, near 1 is a copy of the label. <b>PSI</b> compares two halves of the log: below "
        "0.1 is quiet, above 0.25 is a different log. User ids are hashed; rows are named by their row_id.</p></section>"
    )


def _bar(share: float) -> str:
    return f'<div class="bar"><i style="width:{max(0.0, min(1.0, share)) * 100:.1f}%"></i></div>'


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
