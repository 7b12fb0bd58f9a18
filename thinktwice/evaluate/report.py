"""The evaluation as one page: opens offline, loads nothing, runs no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinktwice.evaluate.report_extra import extra_values
from thinktwice.pages import templates
from thinktwice.pages.charts import Mark, Series, dot_chart, line_chart
from thinktwice.pages.drawing import Drawing
from thinktwice.pages.figures import number
from thinktwice.stats.metrics import UNDEFINED

Chart = tuple[list[Series], Drawing]  # what is drawn and how it is named

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
    first = columns[0]
    colors = {c["key"]: COLORS[i % len(COLORS)] for i, c in enumerate(columns)}
    names = ("key", "name", "decimals", "better", "meaning")
    metrics = [
        dict(zip(names, m, strict=True)) for m in METRICS if m[0] == "auc" or first["metrics"].get(m[0]) is not None
    ]
    page = templates.render(
        Path(__file__).parent,
        "report.html",
        title=f"{content['data']['schema']}: is thinking twice worth it here?",
        subtitles=[_subtitle(content)],
        content=content,
        timings=timings,
        tiles=_tiles(content, timings),
        metrics=metrics,
        undefined=UNDEFINED,
        differences={(d["column"], d["metric"]): d for d in content["differences"] if d["against"] == first["key"]},
        calibration=_calibration(columns, colors),
        frequency=_frequency(content, colors),
        slice_charts={part: _slices(content, colors, content[part]) for part in ("slices", "scenarios")},
        curves=_curves(content, colors),
        **extra_values(content, candidate_timings or {}),
    )
    return str(page)


def _subtitle(content: dict[str, Any]) -> str:
    users = f" of {content['users']:,} users" if content["users"] else ""
    split = content["data"]["split"]
    window = content["data"]["parts"]["test"]["window"]
    when = f", {window[0][:10]} to {window[1][:10]}" if window[0] else ""
    return f"{content['rows']:,} test rows{users}{when} · split by {split['kind']} · click rate {content['click_rate']:.2%}"


def _tiles(content: dict[str, Any], timings: dict[str, float]) -> list[tuple[str, str]]:
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
    return tiles


def _auc(value: float | None) -> str:
    return UNDEFINED if value is None else number(value, 4)


def _calibration(columns: list[dict[str, Any]], colors: dict[str, str]) -> Chart:
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
    return series, line_chart(series, x_label="predicted click rate", y_label="real click rate", diagonal=True)


def _frequency(content: dict[str, Any], colors: dict[str, str]) -> Chart | None:
    deciles = content["deciles"]
    series = _slice_series(content, colors, deciles, horizontal=False)
    if max((len(s.marks) for s in series), default=0) < 2:
        return None  # one group is all rows: there is nothing to compare
    chart = line_chart(
        series,
        x_label="training rows of the row's rarest value",
        y_label="AUC",
        categories=[d["name"] for d in deciles],
    )
    return series, chart


def _slices(content: dict[str, Any], colors: dict[str, str], slices: list[dict[str, Any]]) -> Chart | None:
    rows = [(s["name"], f"{s['share']:.1%} of rows · clicks {s['click_rate']:.1%}") for s in slices]
    series = _slice_series(content, colors, slices, horizontal=True)
    if not any(s.marks for s in series):  # rows of one class have no AUC
        return None
    return series, dot_chart(rows, series, x_label="AUC")


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


def _curves(content: dict[str, Any], colors: dict[str, str]) -> Chart | None:
    curves = content.get("curves") or {}
    labels = {c["key"]: c["label"] for c in content["columns"]}
    series = []
    for key, curve in curves.items():
        for field, word, dashed in (("valid_logloss", "validation", False), ("train_logloss", "training", True)):
            marks = [Mark(p["epoch"], p[field], tip=f"epoch {p['epoch']:g}, logloss {p[field]:.4f}") for p in curve]
            series.append(Series(f"{labels[key]}, {word}", colors[key], marks, dashed))
    if not series:
        return None
    return series, line_chart(series, x_label="epoch", y_label="logloss", width=1080, height=300)
