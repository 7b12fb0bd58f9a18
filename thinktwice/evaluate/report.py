"""The evaluation as one page: opens offline, loads nothing, runs no script."""

from __future__ import annotations

from html import escape
from typing import Any

from thinktwice.evaluate.report_extra import extra_work_section, warning_lines
from thinktwice.pages.charts import Mark, Series, dot_chart, legend, line_chart
from thinktwice.pages.figures import number, small
from thinktwice.pages.style import STYLE
from thinktwice.stats.metrics import UNDEFINED

COLORS = ("#8a919d", "#2f6fdb", "#e0662f", "#3a9b6a")
METRICS = (  # key, name, decimals, which way is better, what it is
    ("auc", "AUC", 4, 1, "share of click / non-click pairs in the right order"),
    ("gauc", "GAUC", 4, 1, "the same within each user, weighted by impressions"),
    ("logloss", "Logloss", 4, -1, "mean surprise at the outcome, in nats"),
    ("ece", "ECE", 4, -1, "mean distance of predicted and real click rate, 15 bins of equal size"),
    ("calibration_ratio", "Expected / real clicks", 3, 0, "1 is right on average"),
    ("truth_distance", "Distance to the truth", 4, -1, "mean |p - true probability| (simulated logs know it)"),
    ("truth_excess_logloss", "Excess logloss", 4, -1, "logloss beyond that of the true probability"),
)


def render(
    content: dict[str, Any],
    timings: dict[str, float] | None = None,
    candidate_timings: dict[str, float] | None = None,
) -> str:
    """The page of an evaluation (the content of ``evaluation.json``).

    Args:
        timings: wall time of every column against one pass. Without it the page depends on ``content`` alone, as the copy in
            a hashed bundle must.
        candidate_timings: the same for every candidate of the test-time work.
    """
    timings = timings or {}
    columns = content["columns"]
    colors = {c["key"]: COLORS[i % len(COLORS)] for i, c in enumerate(columns)}
    on = content.get("mode", "off") != "off"
    parts = [
        f"<header><h1>{escape(content['data']['schema'])}: is thinking twice worth it here?</h1>",
        f"<p class='faint'>{escape(_subtitle(content))}</p></header>",
        f"<section class='card verdict{' on' if on else ''}'>",
        *(f"<p>{escape(line)}</p>" for line in content["verdict"]),
        "</section>",
        _tiles(content, timings),
        "" if content.get("extra_work") else _warnings(content),
        _main_table(content, timings),
        extra_work_section(content, candidate_timings or {}),
        _side_by_side(_calibration(columns, colors), _frequency(content, colors)),
        _slices(
            content,
            colors,
            content["slices"],
            "New users and new items",
            "AUC with 95 % intervals for rows whose user or item training never saw.",
        ),
        _slices(
            content,
            colors,
            content["scenarios"],
            "Scenarios",
            "AUC with 95 % intervals by where the impression was, the largest scenarios first.",
        ),
        _curves(content, colors),
        _how_to_read(),
    ]
    body = "".join(parts)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>Evaluation of {escape(content['data']['schema'])}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _side_by_side(*cards: str) -> str:
    """Two cards in a row; one alone takes all of it."""
    shown = [card for card in cards if card]
    return f"<div class='two'>{''.join(shown)}</div>" if len(shown) > 1 else "".join(shown)


def _subtitle(content: dict[str, Any]) -> str:
    users = f" of {content['users']:,} users" if content["users"] else ""
    split = content["data"]["split"]
    window = content["data"]["parts"]["test"]["window"]
    when = f", {window[0][:10]} to {window[1][:10]}" if window[0] else ""
    return f"{content['rows']:,} test rows{users}{when} · split by {split['kind']} · click rate {content['click_rate']:.2%}"


def _tiles(content: dict[str, Any], timings: dict[str, float]) -> str:
    shipped = next(c for c in content["columns"] if c["key"] == content["shipped"])
    tiles = [
        (_auc(shipped["metrics"]["auc"]), "AUC of what ships"),
        (number(shipped["metrics"]["logloss"], 4), "logloss of what ships"),
        (f"{shipped['cost']['passes']:.2f}×", "passes per row"),
    ]
    if content["shipped"] in timings:
        tiles.append((f"{timings[content['shipped']]:.2f}×", "time against one pass"))
    for entity in ("user", "item"):
        shares = {part: content["novelty"].get(part, {}).get(entity) for part in ("valid", "test")}
        if shares["test"] is not None and shares["valid"] is not None:
            tiles.append(
                (f"{shares['valid']:.0%} | {shares['test']:.0%}", f"rows with an unseen {entity}, validation | test")
            )
    cells = "".join(
        f"<div class='tile'><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles
    )
    return f"<div class='tiles'>{cells}</div>"


def _auc(value: float | None) -> str:
    return UNDEFINED if value is None else number(value, 4)


def _warnings(content: dict[str, Any]) -> str:
    lines = warning_lines(content)
    return f"<section class='card warn'><h2>Mind</h2>{lines}</section>" if lines else ""


def _main_table(content: dict[str, Any], timings: dict[str, float]) -> str:
    columns = content["columns"]
    first = columns[0]
    head = "<th></th>" + "".join(
        f"<th>{escape(c['label'])}{'<span class=tag>ships</span>' if c['key'] == content['shipped'] else ''}</th>"
        for c in columns
    )
    rows = []
    for key, name, decimals, better, meaning in METRICS:
        if first["metrics"].get(key) is None and key != "auc":
            continue
        cells = [f"<td title='{escape(meaning)}'>{escape(name)}<small>{escape(meaning)}</small></td>"]
        for c in columns:
            ship = " class='ship'" if c["key"] == content["shipped"] else ""
            change = _difference(content, c["key"], first["key"], key)
            below = small(change, decimals, better) if change else ""
            value = c["metrics"][key]
            cells.append(f"<td{ship}>{UNDEFINED if value is None else number(value, decimals)}{below}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    cost = ""
    for c in columns:
        ship = " class='ship'" if c["key"] == content["shipped"] else ""
        wall = f"<small>{timings[c['key']]:.2f}× time</small>" if c["key"] in timings else ""
        cost += f"<td{ship}>{c['cost']['passes']:.2f}×{wall}</td>"
    meaning = "scored rows per row, and wall time against one pass" if timings else "scored rows per row"
    rows.append(f"<tr><td>Cost<small>{meaning}</small></td>{cost}</tr>")
    return (
        "<section class='card'><h2>The same test rows, side by side</h2>"
        f"<p class='faint'>Small figures: change against {escape(first['label'])} with its 95 % interval, clustered by user. "
        "Coloured only where chance is excluded.</p>"
        f"<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div></section>"
    )


def _calibration(columns: list[dict[str, Any]], colors: dict[str, str]) -> str:
    series = [
        Series(
            c["label"],
            colors[c["key"]],
            [
                Mark(
                    b["predicted"],
                    b["observed"],
                    tip=f"predicted {b['predicted']:.3f}, real {b['observed']:.3f}, {b['rows']:,} rows",
                )
                for b in c["calibration"]
            ],
        )
        for c in columns
    ]
    chart = line_chart(series, x_label="predicted click rate", y_label="real click rate", diagonal=True)
    return (
        "<section class='card'><h2>Calibration</h2><p class='faint'>Fifteen groups of equal size. On the dashed line the "
        f"prediction is right.</p>{legend(series)}{chart}</section>"
    )


def _frequency(content: dict[str, Any], colors: dict[str, str]) -> str:
    deciles = content["deciles"]
    series = _slice_series(content, colors, deciles, horizontal=False)
    if max((len(s.marks) for s in series), default=0) < 2:
        return ""  # one group is all rows: there is nothing to compare
    chart = line_chart(
        series,
        x_label="training rows of the row's rarest value",
        y_label="AUC",
        categories=[d["name"] for d in deciles],
    )
    return (
        "<section class='card'><h2>Rare values</h2><p class='faint'>Test rows in groups by the training count of their least "
        f"supported value; bars are 95 % intervals.</p>{legend(series)}{chart}</section>"
    )


def _slices(
    content: dict[str, Any], colors: dict[str, str], slices: list[dict[str, Any]], title: str, meaning: str
) -> str:
    if not slices:
        return ""
    rows = [(s["name"], f"{s['share']:.1%} of rows · clicks {s['click_rate']:.1%}") for s in slices]
    series = _slice_series(content, colors, slices, horizontal=True)
    chart = ""
    if any(s.marks for s in series):  # rows of one class have no AUC
        chart = f"{legend(series)}{dot_chart(rows, series, x_label='AUC')}"
    columns = content["columns"]
    head = "".join(f"<th>{escape(c['label'])}</th>" for c in columns)
    lines = []
    for s in slices:
        cells = []
        for c in columns:
            found = s["columns"][c["key"]]
            below = small(found["logloss_change"], 4, -1) if found["logloss_change"] else ""
            cells.append(f"<td>{number(found['logloss'], 4)}{below}</td>")
        lines.append(f"<tr><td>{escape(s['name'])}<small>{s['rows']:,} rows</small></td>{''.join(cells)}</tr>")
    return (
        f"<section class='card'><h2>{title}</h2><p class='faint'>{meaning}</p>"
        f"{chart}"
        f"<h2 style='margin-top:18px'>Logloss of the same rows</h2><div class='scroll'><table><tr><th></th>{head}</tr>{''.join(lines)}</table></div></section>"
    )


def _slice_series(
    content: dict[str, Any], colors: dict[str, str], slices: list[dict[str, Any]], *, horizontal: bool
) -> list[Series]:
    out = []
    for c in content["columns"]:
        marks = []
        for i, s in enumerate(slices):
            a = s["columns"][c["key"]]["auc"]
            if a["value"] is None:
                continue
            tip = f"{s['name']}: AUC {a['value']:.4f}, {s['rows']:,} rows"
            if horizontal:
                marks.append(Mark(a["value"], i, a["low"], a["high"], tip))
            else:
                marks.append(Mark(i, a["value"], a["low"], a["high"], tip))
        out.append(Series(c["label"], colors[c["key"]], marks))
    return out


def _curves(content: dict[str, Any], colors: dict[str, str]) -> str:
    curves = content.get("curves") or {}
    labels = {c["key"]: c["label"] for c in content["columns"]}
    series = []
    for key, curve in curves.items():
        for field, word, dashed in (("valid_logloss", "validation", False), ("train_logloss", "training", True)):
            marks = [Mark(p["epoch"], p[field], tip=f"epoch {p['epoch']:g}, logloss {p[field]:.4f}") for p in curve]
            series.append(Series(f"{labels[key]}, {word}", colors[key], marks, dashed))
    if not series:
        return ""
    chart = line_chart(series, x_label="epoch", y_label="logloss", width=1080, height=300)
    return (
        "<section class='card'><h2>Training</h2><p class='faint'>Validation logloss (solid) and training logloss (dashed) of the "
        f"chosen settings.</p>{legend(series)}{chart}</section>"
    )


def _how_to_read() -> str:
    return (
        "<section class='card'><h2>How to read this</h2><p class='faint'>Every column scored the same rows, which no training, "
        "tuning or choice has seen. Intervals are paired and treat the rows of one user as one piece of evidence: DeLong for AUC, "
        "a bootstrap over users for the rest. An interval that holds 0 means that chance explains the difference. Slices overlap "
        "and are many: one coloured figure among them proves little.</p></section>"
    )


def _difference(content: dict[str, Any], column: str, against: str, metric: str) -> dict[str, Any] | None:
    for d in content["differences"]:
        if (d["column"], d["against"], d["metric"]) == (column, against, metric):
            return d
    return None
