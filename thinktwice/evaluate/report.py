"""The evaluation as one page that works offline: no external resources, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from thinktwice.evaluate.evaluation import Evaluation, MeasuredColumn, MetricName, Slice, TrainingEvaluation
from thinktwice.evaluate.report_extra import extra_values
from thinktwice.evaluate.report_findings import findings_values
from thinktwice.pages import templates
from thinktwice.pages.charts import Mark, Series, dot_chart, line_chart
from thinktwice.pages.drawing import Drawing
from thinktwice.pages.figures import number
from thinktwice.stats.metrics import UNDEFINED

Chart = tuple[list[Series], Drawing]  # the legend and the drawing

COLORS = ("#8a919d", "#2f6fdb", "#e0662f", "#3a9b6a")


class MetricRow(NamedTuple):
    """A row of the main table; ``better`` is 1 or -1 for the better direction, 0 for neither."""

    key: MetricName
    name: str
    decimals: int
    better: int
    meaning: str


METRICS = (
    MetricRow("auc", "AUC", 4, 1, "share of click / non-click pairs in the right order"),
    MetricRow("gauc", "GAUC", 4, 1, "the same within each user, weighted by impressions"),
    MetricRow("logloss", "Logloss", 4, -1, "mean surprise at the outcome, in nats"),
    MetricRow("ece", "ECE", 4, -1, "mean distance of predicted and real click rate, 15 bins of equal size"),
    MetricRow("calibration_ratio", "Expected / real clicks", 3, 0, "1 is right on average"),
    MetricRow("truth_distance", "Distance to the truth", 4, -1, "mean |p - true probability| (simulated logs know it)"),
    MetricRow("truth_excess_logloss", "Excess logloss", 4, -1, "logloss beyond that of the true probability"),
)


def render(
    content: Evaluation,
    timings: Mapping[str, float] | None = None,
    candidate_timings: Mapping[str, float] | None = None,
) -> str:
    """The page of an evaluation (the content of ``evaluation.json``).

    Args:
        timings: measured time of every column relative to one pass. Without it the page depends only on ``content``, as the copy in
        a hashed bundle must.
        candidate_timings: the same for every candidate of the test-time work.
    """
    timings = timings or {}
    columns = content.columns
    first = columns[0]
    colors = {c.key: COLORS[i % len(COLORS)] for i, c in enumerate(columns)}
    page = templates.render(
        Path(__file__).parent,
        "report.html",
        title=f"{content.data.schema_name}: how good is the model?",
        subtitles=[_subtitle(content)],
        content=content,
        timings=timings,
        tiles=_tiles(content, timings),
        metrics=[m for m in METRICS if m.key == "auc" or first.metrics.of(m.key) is not None],
        undefined=UNDEFINED,
        differences={(d.column, d.metric): d for d in content.differences if d.against == first.key},
        calibration=_calibration(columns, colors),
        frequency=_frequency(content, colors),
        slice_charts={
            "slices": _slices(content, colors, content.slices),
            "scenarios": _slices(content, colors, content.scenarios),
        },
        curves=_curves(content, colors),
        **findings_values(content, colors),
        **extra_values(content, candidate_timings or {}),
    )
    return str(page)


def _subtitle(content: Evaluation) -> str:
    users = f" of {content.users:,} users" if content.users else ""
    first, last = content.data.parts["test"].window
    when = f", {first[:10]} to {last[:10]}" if first else ""
    return f"{content.rows:,} test rows{users}{when} · split {content.data.split.words} · click rate {content.click_rate:.2%}"


def _tiles(content: Evaluation, timings: Mapping[str, float]) -> list[tuple[str, str]]:
    shipped = content.column(content.shipped)
    tiles = [
        (_auc(shipped.metrics.auc), "AUC of what ships"),
        (number(shipped.metrics.logloss, 4), "logloss of what ships"),
        (f"{shipped.cost.passes:.2f}×", "passes per row"),
    ]
    if content.shipped in timings:
        tiles.append((f"{timings[content.shipped]:.2f}×", "time against one pass"))
    for entity in ("user", "item"):
        valid, test = content.novelty.valid.get(entity), content.novelty.test.get(entity)
        if valid is not None and test is not None:
            tiles.append((f"{valid:.0%} | {test:.0%}", f"rows with an unseen {entity}, validation | test"))
    return tiles


def _auc(value: float | None) -> str:
    return UNDEFINED if value is None else number(value, 4)


def _calibration(columns: Sequence[MeasuredColumn], colors: dict[str, str]) -> Chart:
    series = [
        Series(
            c.label,
            colors[c.key],
            [
                Mark(
                    b.predicted,
                    b.observed,
                    tip=f"predicted {b.predicted:.3f}, real {b.observed:.3f}, {b.rows:,} rows",
                )
                for b in c.calibration
            ],
        )
        for c in columns
    ]
    return series, line_chart(series, x_label="predicted click rate", y_label="real click rate", diagonal=True)


def _frequency(content: Evaluation, colors: dict[str, str]) -> Chart | None:
    series = _slice_series(content, colors, content.deciles, horizontal=False)
    if max((len(s.marks) for s in series), default=0) < 2:
        return None  # a single group is all rows: nothing to compare
    chart = line_chart(
        series,
        x_label="training rows of the row's rarest value",
        y_label="AUC",
        categories=[d.name for d in content.deciles],
    )
    return series, chart


def _slices(content: Evaluation, colors: dict[str, str], slices: Sequence[Slice]) -> Chart | None:
    rows = [(s.name, f"{s.share:.1%} of rows · clicks {s.click_rate:.1%}") for s in slices]
    series = _slice_series(content, colors, slices, horizontal=True)
    if not any(s.marks for s in series):  # rows of one class have no AUC
        return None
    return series, dot_chart(rows, series, x_label="AUC")


def _slice_series(
    content: Evaluation, colors: dict[str, str], slices: Sequence[Slice], *, horizontal: bool
) -> list[Series]:
    out = []
    for c in content.columns:
        marks = []
        for i, s in enumerate(slices):
            auc = s.columns[c.key].auc
            if auc.value is None:
                continue
            tip = f"{s.name}: AUC {auc.value:.4f}, {s.rows:,} rows"
            x, y = (auc.value, i) if horizontal else (i, auc.value)
            marks.append(Mark(x, y, auc.low, auc.high, tip))
        out.append(Series(c.label, colors[c.key], marks))
    return out


def _curves(content: Evaluation, colors: dict[str, str]) -> Chart | None:
    if not isinstance(content, TrainingEvaluation) or not content.curves:
        return None
    series = []
    for key, curve in content.curves.items():
        label, color = content.column(key).label, colors[key]
        valid = [(p.epoch, p.valid_logloss) for p in curve]
        train = [(p.epoch, p.train_logloss) for p in curve]
        series += [
            _curve(f"{label}, validation", color, valid),
            _curve(f"{label}, training", color, train, dashed=True),
        ]
    return series, line_chart(series, x_label="epoch", y_label="logloss", width=1080, height=300)


def _curve(name: str, color: str, points: Sequence[tuple[float, float]], *, dashed: bool = False) -> Series:
    marks = [Mark(epoch, loss, tip=f"epoch {epoch:g}, logloss {loss:.4f}") for epoch, loss in points]
    return Series(name, color, marks, dashed)
