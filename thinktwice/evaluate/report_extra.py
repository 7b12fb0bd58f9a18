"""The part of the report that says whether extra work pays, which, and where: the reading of ``extra_work``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

from thinktwice.pages.charts import Mark, Series, legend, line_chart
from thinktwice.pages.charts_scatter import Point, scatter_chart
from thinktwice.pages.figures import cell, change, number, signed

NOVELTY_GAP = 0.2  # difference of shares of unseen users or items from which validation speaks of other rows than test
FAR = 2.0  # times the reach of the others, from where a loss would squeeze them into a line
GOOD, BAD, NEUTRAL, PLAIN = "#23804f", "#bb3d2a", "#59606b", "#2f6fdb"
CONTROLS = {
    "recalibrated": ("a mere recalibration", ""),
    "shuffled_counts": (
        "shuffled counts",
        "the same work with counts that belong to other values: a gain that survives is no knowledge of rare values",
    ),
    "random_trigger": (
        "rows at random",
        "as many rows asked again, chosen by chance: a gain that survives is no knowledge of unsure rows",
    ),
    "oracle_trigger": (
        "oracle",
        "upper bound, cannot be built: only the rows whose loss the second opinion did lower, which needs the label",
    ),
}
ORDERS = (  # order of asking, name, color, dashed
    ("entropy", "most open score first", "#2f6fdb", False),
    ("dual", "thinnest support first (dual)", "#e0662f", False),
    ("random", "by chance", "#8a919d", True),
    ("oracle", "oracle (cannot be built)", "#3a9b6a", True),
)


def extra_work_section(content: dict[str, Any], timings: dict[str, float]) -> str:
    """The cards about extra work; none for an evaluation without it.

    Args:
        timings: wall time of every candidate against one pass, as far as known.
    """
    found = content.get("extra_work")
    if not found:
        return ""
    answer = (
        "<section class='card'><h2>Is extra work worth it?</h2>"
        f"<p style='margin:4px 0 10px;font-weight:600'>{escape(content['test_time']['sentence'])}</p>"
    )
    if not found["candidates"]:
        return f"{answer}</section>{_rows_alike(content)}"
    return (
        f"{answer}{_frontier(found, timings)}</section>{_candidates(content, found, timings)}"
        f"{_uplift(found)}{_references(found)}{_where(found)}{_rows_alike(content)}"
    )


def warning_lines(content: dict[str, Any]) -> str:
    """What forbids to take a gain at its word: validation unlike test, counts that predict the label; empty without any."""
    lines = [f"{line}; no claim about frequency is made" for line in content["test_time"].get("warnings", ())]
    for entity, valid, test in _novelty(content):
        if abs(valid - test) > NOVELTY_GAP:
            lines.append(
                f"validation has {valid:.0%} rows with an unseen {entity} and test {test:.0%}: what was tuned on validation "
                "was tuned for other rows"
            )
    return "".join(f"<p class='faint' style='margin:2px 0'>{escape(line[0].upper() + line[1:])}.</p>" for line in lines)


def _novelty(content: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Entity and its share of unseen rows in validation and in test."""
    valid, test = (content["novelty"].get(part, {}) for part in ("valid", "test"))
    return [(entity, valid[entity], test[entity]) for entity in ("user", "item") if entity in valid and entity in test]


def _frontier(found: dict[str, Any], timings: dict[str, float]) -> str:
    points = [Point("one plain pass", 1.0, 0.0, color=PLAIN, tip=f"logloss {found['off']['logloss']:.5f}")]
    for c in found["candidates"]:
        now = c["change"]
        color = NEUTRAL if not now["significant"] else GOOD if now["value"] < 0 else BAD
        tip = f"{c['passes']:.2f} passes, {_time(c, timings)}, logloss {signed(now, 5)}"
        points.append(Point(c["name"], c["passes"], now["value"], now["low"], now["high"], color, tip))
    near = [p for p in points if p.color != BAD]
    reach = max(abs(v) for p in near for v in (p.y, p.low, p.high) if v is not None)
    near += [p for p in points if p.color == BAD and p.y <= FAR * reach]
    charts = _scatter(near, 430)
    if len(near) < len(points):
        charts += f"<p class='faint' style='margin-top:14px'>The same with those that lose far more.</p>{_scatter(points, 280)}"
    names = [Series(n, c, ()) for n, c in (("better", GOOD), ("worse", BAD), ("chance explains it", NEUTRAL))]
    return (
        f"<p class='faint'>Quality against cost on {found['rows']:,} test rows: every way to work more on a row that "
        "validation tried, against one plain pass. Below 0 is better; bars are 95 % intervals; the dashed line joins what "
        f"nothing cheaper beats.</p>{legend(names)}{charts}"
    )


def _scatter(points: list[Point], height: int) -> str:
    x_label, y_label = "forward passes per row", "change of logloss"
    return scatter_chart(points, x_label=x_label, y_label=y_label, log_x=True, width=1080, height=height)


def _time(entry: dict[str, Any], timings: dict[str, float]) -> str:
    if entry["name"] in timings:
        return f"{timings[entry['name']]:.2f}× time"
    return f"about {entry['cost']:.1f}× time"


def _candidates(content: dict[str, Any], found: dict[str, Any], timings: dict[str, float]) -> str:
    off = found["off"]
    rows = [
        f"<tr><td>one plain pass</td><td>1.00×</td><td></td><td>{number(off['logloss'], 5)}</td>"
        f"<td>{number(off['auc'], 4)}</td><td>{number(off['ece'], 4)}</td>"
        "<td></td></tr>"
    ]
    for c in found["candidates"]:
        rows.append(
            f"<tr{' class=ship' if c['ships'] else ''}><td>{escape(c['name'])}</td>"
            f"<td style='white-space:nowrap'>{c['passes']:.2f}×<small>{_time(c, timings)}</small></td>"
            f"<td>{cell(c['validation']['change'], 5)}</td>"
            f"<td>{cell(c['change'], 5)}<small>p {_p(c['change'])}</small></td>"
            f"<td>{cell(c['auc_change'], 4, 1)}</td><td>{number(c['ece'], 4)}</td>"
            f"<td style='text-align:left'>{_answer(c)}</td></tr>"
        )
    later = content["test_time"]["rows"]["accept"]
    return (
        "<section class='card'><h2>Every candidate</h2><p class='faint'>Fitted on the earlier half of validation, judged on "
        f"{later:,} later rows: at most one ships, and only if its gain excludes chance and a mere recalibration, shuffled "
        "counts or randomly chosen rows do not do as well; these intervals hold for all candidates together. The test columns measure the same frozen settings and decide "
        "nothing; p is adjusted for the number of candidates (Holm). First row: plain values; below it: changes."
        f"{_detectable(found)}</p><div class='scroll'><table class='evidence'><tr><th>candidate</th><th>passes</th>"
        "<th>validation: logloss</th><th>test: logloss</th><th>AUC</th><th>ECE</th>"
        "<th style='text-align:left'>answer</th></tr>"
        f"{''.join(rows)}</table></div></section>"
    )


def _p(found: dict[str, Any]) -> str:
    return "&lt; 0.001" if found["p_holm"] < 0.001 else f"{found['p_holm']:.3f}"


def _answer(entry: dict[str, Any]) -> str:
    words = escape("; ".join(entry["validation"]["reasons"]))
    if entry["ships"]:
        words = "<span class='good'>ships</span>"
    elif entry["validation"]["accepted"]:
        words = "<span class='good'>proved a gain, but another fits the earlier half better</span>"
    return words + "".join(
        f"<small>against {escape(CONTROLS[name][0])}: {signed(v, 5)}</small>"
        for name, v in entry["validation"]["controls"].items()
    )


def _detectable(found: dict[str, Any]) -> str:
    """What these rows can show at all, as a sentence."""
    values = {
        metric: [c["detectable"][metric] for c in found["candidates"] if c["detectable"][metric]]
        for metric in ("logloss", "auc")
    }
    if not all(values.values()):
        return ""
    return (
        f" {found['rows']:,} rows show a true change with probability 80 % if it is at least "
        f"{number(median(values['logloss']), 5)} of logloss or {number(median(values['auc']), 4)} of AUC (median over "
        f"candidates; the easiest {number(min(values['logloss']), 5)} and {number(min(values['auc']), 4)})."
    )


def _uplift(found: dict[str, Any]) -> str:
    uplift = found["uplift"]
    if uplift is None:
        return ""
    own = uplift["change"]
    chosen = Series(
        "what its own trigger asked",
        "#22262c",
        [
            Mark(
                uplift["share"],
                own["value"],
                own["low"],
                own["high"],
                f"{uplift['share']:.1%} of rows, {signed(own, 5)}",
            )
        ],
    )
    series = {key: _order(uplift, key, name, color, dashed) for key, name, color, dashed in ORDERS}
    charts: list[str] = []
    for keys in (("entropy", "dual", "random"), tuple(series)):
        drawn = [series[key] for key in keys]
        drawn += [chosen] if len(charts) == 0 else []
        charts.append(
            f"<div>{legend(drawn)}{line_chart(drawn, x_label='share of rows asked again', y_label='change of logloss')}</div>"
        )
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{change(-uplift['curves'][key]['area'], 6)}</td></tr>"
        for key, name, _, _ in ORDERS
        if key != "random"
    )
    return (
        "<section class='card'><h2>Does the trigger find the rows that gain?</h2><p class='faint'>Every test row was asked again "
        f"by <b>{escape(uplift['candidate'])}</b>; the lines add up what that changed when a growing share of rows is asked, in "
        "the order of each trigger, against its own first pass. A line below the one by chance found rows that gain. Its first "
        f"pass alone differs from the plain one by {signed(uplift['base_change'], 5)}; asking everybody adds "
        f"{signed(uplift['everybody'], 5)}.</p>"
        f"<div class='two'>{''.join(charts)}</div>"
        "<table style='max-width:700px;margin-top:10px'><tr><th>order</th><th>change against chance, mean over all shares</th></tr>"
        f"{cells}</table></section>"
    )


def _order(uplift: dict[str, Any], key: str, name: str, color: str, dashed: bool) -> Series:
    curve = zip(uplift["shares"], uplift["curves"][key]["change"], strict=True)
    return Series(name, color, [Mark(x, y, tip=f"{x:.0%} of rows, {change(y, 5)}") for x, y in curve], dashed)


def _references(found: dict[str, Any]) -> str:
    if not found["references"]:
        return ""
    rows = []
    for r in found["references"]:
        name, meaning = CONTROLS[r["name"]]
        better = 0 if r["name"] == "oracle_trigger" else -1  # nothing is better than a bound
        rows.append(
            f"<tr><td>{escape(name)}<small>{escape(meaning)}</small></td><td style='white-space:nowrap'>{escape(r['candidate'])}</td>"
            f"<td>{r['passes']:.2f}×</td><td>{cell(r['change'], 5)}</td><td>{cell(r['candidate_against'], 5, better)}</td></tr>"
        )
    return (
        "<section class='card'><h2>What explains a gain?</h2><p class='faint'>References on the same test rows; none of them can "
        "ship. Where a control does as well as the candidate, the gain is not what the candidate claims to know.</p>"
        "<div class='scroll'><table><tr><th>reference</th><th>of</th><th>passes</th><th>logloss, against a plain pass</th>"
        f"<th>candidate minus reference</th></tr>{''.join(rows)}</table></div></section>"
    )


def _where(found: dict[str, Any]) -> str:
    truth = "truth_distance" in found["off"]
    if not found["slices"] and not truth:
        return ""
    heads = [(part["name"], f"{part['rows']:,} rows") for part in found["slices"]]
    if truth:
        heads.append(("distance to the truth", f"all rows, now {number(found['off']['truth_distance'], 4)}"))
    head = "".join(
        f"<th>{escape(name)}<small style='display:block;font-weight:400'>{escape(remark)}</small></th>"
        for name, remark in heads
    )
    rows = []
    for c in found["candidates"]:
        changes = [c["slices"][part["name"]] for part in found["slices"]]
        changes += [c["truth_distance_change"]] if truth else []
        cells = "".join(f"<td>{cell(value, 5)}</td>" for value in changes)
        rows.append(f"<tr><td>{escape(c['name'])}</td>{cells}</tr>")
    return (
        "<section class='card'><h2>Where would it pay?</h2><p class='faint'>Change of logloss in the rows where extra work should "
        "help if it helps anywhere, and in the best supported ones. Coloured where the interval of the cell excludes 0; with "
        "so many cells, some will by chance.</p>"
        f"<div class='scroll'><table class='evidence'><tr><th></th>{head}</tr>{''.join(rows)}</table></div></section>"
    )


def _rows_alike(content: dict[str, Any]) -> str:
    """Novelty of validation beside test, and what predicts the label by itself."""
    shares = _novelty(content)
    counts = content["test_time"].get("count_auc") or {}
    if not shares and not counts:
        return ""
    lines: Sequence[str] = [
        f"<tr><td>rows with an unseen {escape(entity)}</td><td>{valid:.1%}</td><td>{test:.1%}</td></tr>"
        for entity, valid, test in shares
    ]
    novelty = f"<table><tr><th></th><th>validation</th><th>test</th></tr>{''.join(lines)}</table>" if lines else ""
    predicts = "".join(f"<tr><td>{escape(name)}</td><td>{auc:.3f}</td></tr>" for name, auc in counts.items())
    table = f"<table><tr><th>training count of</th><th>AUC by itself</th></tr>{predicts}</table>" if counts else ""
    warnings = warning_lines(content)
    tables = f"<div class='two'><div>{novelty}</div><div>{table}</div></div>" if novelty and table else novelty + table
    return (
        f"<section class='card{' warn' if warnings else ''}'><h2>Can these rows answer the question?</h2>"
        "<p class='faint'>What is fitted on validation fits test only if both are as new; and where the count of a value alone "
        "predicts the click (AUC far from 0.5), a gain on rare values may be popularity.</p>"
        f"{warnings}{tables}</section>"
    )
