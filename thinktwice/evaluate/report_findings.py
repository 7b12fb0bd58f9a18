"""The first part of the report: the findings about the model, as the values of ``report_findings.html``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from thinktwice.evaluate.evaluation import Evaluation, TrainingEvaluation
from thinktwice.evaluate.findings.record import (
    FieldImportance,
    Findings,
    Importance,
    Learning,
    Metric,
    Pretraining,
    RestoredField,
    WeakSlice,
)
from thinktwice.evaluate.findings.sentences import LEVEL
from thinktwice.pages.charts import Mark, Series, line_chart, spark_line
from thinktwice.pages.drawing import Drawing
from thinktwice.pages.figures import change, interval, number
from thinktwice.pages.strips import Strip, Strips, strips
from thinktwice.stats.metrics import UNDEFINED
from thinktwice.versioned import MeasuredInterval

SHOWN_FIELDS, SHOWN_SLICES = 24, 12  # the rest is folded away
HALF = 440  # width of a chart that is readable at 400 px, and in half of a card
NAMES = {"popularity": "popularity of the item", "logistic regression": "one-hot logistic regression"}
INK = "#22262c"

Chart = tuple[list[Series], Drawing]


class LearningPage(NamedTuple):
    """The trainings, and their curves of logloss and AUC; None where there is none."""

    logloss: Chart | None
    auc: Chart | None


class PretrainingPage(NamedTuple):
    """The fields with the picture of their losses, and their weights, the field with the largest loss first; None where weights were
    not learned by loss."""

    fields: Sequence[tuple[RestoredField, Drawing]]
    weights: Strips | None


def findings_values(content: Evaluation, colors: dict[str, str]) -> dict[str, object]:
    """The values of ``report_findings.html``; ``colors`` by column."""
    run = content if isinstance(content, TrainingEvaluation) else None
    found = None if run is None else run.findings
    if run is None or found is None:
        return {"findings": None}
    return {
        "findings": found,
        "headline_tiles": _tiles(run, found),
        "baseline_names": NAMES,
        "baseline_strips": _baselines(run, found),
        "learning_charts": _learning(run, found.learning, colors),
        "trunk_names": {one.trunk: run.column(one.trunk).label for one in found.learning},
        "field_strips": _fields(found.importance),
        "more_fields": found.importance.fields[SHOWN_FIELDS:],
        "slice_strips": _slices(found.weakness.slices, found.comparison.auc),
        "more_slices": found.weakness.slices[SHOWN_SLICES:],
        "pretraining_page": None if found.pretraining is None else _pretraining(found.pretraining),
    }


def _tiles(run: TrainingEvaluation, found: Findings) -> list[tuple[str, str]]:
    """The key figures: quality, lead over the baselines, calibration, weakness."""
    auc = found.comparison.auc
    tiles = [
        (UNDEFINED if auc.value is None else number(auc.value, 3), f"AUC of what ships {_range(auc, 3)}".rstrip()),
    ]
    for one in found.comparison.baselines:
        gain = one.auc_change
        tiles.append((change(gain.value, 3), f"AUC against {NAMES[one.name]} {interval(gain, 3)}".rstrip()))
    ratio = run.column(run.shipped).metrics.calibration_ratio
    tiles.append((number(ratio, 2), "expected / real clicks; 1 is right"))
    weak = sum(
        one.auc_gap is not None and (one.auc_gap.value or 0.0) < 0 and one.auc_gap.p_holm < LEVEL
        for one in found.weakness.slices
    )
    if found.weakness.slices:
        tiles.append((f"{weak} of {len(found.weakness.slices)}", "slices order clicks worse than the other rows"))
    return tiles


def _range(found: MeasuredInterval, decimals: int) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"({number(found.low, decimals)} … {number(found.high, decimals)})"


def _baselines(run: TrainingEvaluation, found: Findings) -> Strips:
    shipped = found.comparison.auc
    lines = [
        Strip(
            run.column(run.shipped).label, _auc(shipped), shipped.value, shipped.low, shipped.high,
            f"what ships; logloss {found.comparison.logloss:.4f}", _range(shipped, 4), head=True,
        )
    ]  # fmt: skip
    lines += [
        Strip(
            NAMES[one.name], _auc(one.auc), one.auc.value, one.auc.low, one.auc.high,
            f"logloss {one.logloss:.4f}", _range(one.auc, 4), "rest",
        )
        for one in found.comparison.baselines
    ]  # fmt: skip
    return strips(lines, label="AUC")


def _auc(found: MeasuredInterval) -> str:
    return UNDEFINED if found.value is None else number(found.value, 4)


def _learning(run: TrainingEvaluation, found: Sequence[Learning], colors: dict[str, str]) -> LearningPage:
    losses: list[Series] = []
    areas: list[Series] = []
    kept_loss: list[Mark] = []
    kept_auc: list[Mark] = []
    for one in found:
        curve = run.curves.get(one.trunk, ())
        name, color = run.column(one.trunk).label, colors[one.trunk]
        losses.append(_line(f"{name}, validation", color, ((p.epoch, p.valid_logloss) for p in curve), "logloss"))
        losses.append(
            _line(f"{name}, training", color, ((p.epoch, p.train_logloss) for p in curve), "logloss", dashed=True)
        )
        areas.append(
            _line(
                f"{name}, validation", color, ((p.epoch, p.valid_auc) for p in curve if p.valid_auc is not None), "AUC"
            )
        )
        for at in curve:
            if at.epoch == one.kept:
                kept_loss.append(
                    Mark(at.epoch, at.valid_logloss, tip=f"{name}, epoch {at.epoch:g}, logloss {at.valid_logloss:.4f}")
                )
                if at.valid_auc is not None:
                    kept_auc.append(
                        Mark(at.epoch, at.valid_auc, tip=f"{name}, epoch {at.epoch:g}, AUC {at.valid_auc:.4f}")
                    )
    return LearningPage(_chart(losses, kept_loss, "logloss"), _chart(areas, kept_auc, "AUC"))


def _line(name: str, color: str, points: Iterable[tuple[float, float]], metric: str, *, dashed: bool = False) -> Series:
    return Series(name, color, [Mark(x, y, tip=f"epoch {x:g}, {metric} {y:.4f}") for x, y in points], dashed)


def _chart(series: list[Series], kept: list[Mark], metric: str) -> Chart | None:
    if not any(one.marks for one in series):
        return None
    marked = [Series("kept weights", INK, [mark]) for mark in kept]  # a series each: no line joins them
    drawing = line_chart([*series, *marked], x_label="epoch", y_label=metric, width=HALF, height=300)
    return [*series, *marked[:1]], drawing


def _fields(found: FieldImportance) -> Strips:
    """Fields below their groups, the most important group first."""
    fields = found.fields[:SHOWN_FIELDS]
    lines = []
    for group in found.groups:
        if sum(one.group == group.group for one in found.fields) > 1:
            lines.append(_importance(group, found.metric, head=True))
        lines += [_importance(one, found.metric) for one in fields if one.group == group.group]
    return strips(lines, label="AUC lost" if found.metric == "auc" else "logloss added", reference=0.0)


def _importance(one: Importance, metric: Metric, *, head: bool = False) -> Strip:
    found = one.by(metric)
    name, remark = (f"{one.name}, all together", "") if head else (one.name, one.group)
    kind = "" if one.matters(metric) else "rest"
    figure, detail = change(found.value, 4), interval(found, 4)
    return Strip(name, figure, found.value, found.low, found.high, remark, detail, kind, head)


def _slices(found: Sequence[WeakSlice], overall: MeasuredInterval) -> Strips:
    lines = []
    for one in found[:SHOWN_SLICES]:
        gap = one.auc_gap
        weak = gap is not None and (gap.value or 0.0) < 0 and gap.p_holm < LEVEL
        beyond = ", beyond chance" if one.bias.p_holm < LEVEL else ""
        remark = f"{one.rows:,} rows · clicks {one.click_rate:.1%} ({one.predicted:.1%} predicted{beyond})"
        detail = "" if gap is None else f"{change(gap.value, 4)} (p {p_value(gap.p_holm)})"
        lines.append(
            Strip(
                one.name,
                _auc(one.auc),
                one.auc.value,
                one.auc.low,
                one.auc.high,
                remark,
                detail,
                "bad" if weak else "rest",
            )
        )
    return strips(lines, label="AUC", reference=overall.value)


def p_value(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _pretraining(found: Pretraining) -> PretrainingPage:
    drawn = [(one, _spark(found.epochs, one.losses)) for one in found.fields]
    ended = [one for one in found.fields if one.weights and one.losses[-1] is not None]
    if found.balancing != "kendall" or len(ended) < 2:
        return PretrainingPage(drawn, None)
    lines = [
        Strip(one.name, number(one.weights[-1], 3), one.weights[-1], remark=f"loss {number(one.losses[-1], 3)}")
        for one in ended
    ]
    return PretrainingPage(drawn, strips(lines, label="weight", reference=1.0))


def _spark(epochs: Sequence[float], losses: Sequence[float | None]) -> Drawing:
    return spark_line([(x, y) for x, y in zip(epochs, losses, strict=True) if y is not None])
