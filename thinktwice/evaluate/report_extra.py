"""The part of the report on ``extra_work``: whether it pays, which kind, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from thinktwice.data.training_set_info import Novelty
from thinktwice.evaluate.evaluation import Evaluation, TrainingEvaluation
from thinktwice.evaluate.extra_work_record import STEPS, CandidateOnTest, ExtraWork, ThoughtTwice, Uplift
from thinktwice.pages.charts import Mark, Series, line_chart
from thinktwice.pages.charts_scatter import Point, scatter_chart
from thinktwice.pages.drawing import Drawing
from thinktwice.pages.figures import change, signed
from thinktwice.testtime.report import TestTimeReport

NOVELTY_GAP = (
    0.2  # difference of the shares of unseen users or items above which validation is not representative of test
)
FAR = 2.0  # multiple of the others' range above which a candidate's loss gets its own plot
GOOD, BAD, NEUTRAL, PLAIN = "#23804f", "#bb3d2a", "#59606b", "#2f6fdb"
CONTROLS = {
    "recalibrated": ("a mere recalibration", ""),
    "shuffled_counts": (
        "shuffled counts",
        "the same work with counts that belong to other values: a gain that survives is not due to knowledge of rare values",
    ),
    "other_counters": (
        "evidence of other rows",
        "the same networks fitted to counters and outcomes that belong to other rows: a gain that survives is not due to knowledge of the row",
    ),
    "day_late": (
        "counters a day late",
        "a correction fitted to counters that know every outcome a day later: where it does as well, the gain needs no fresh outcomes. It refuses nothing",
    ),
    "counters_in_trunk": (
        "the same counters in the trunk",
        "the trunk trained with the counters among its inputs: of the two, the one with the better fit ships",
    ),
    "first_look": (
        "the first look",
        "the corrected scores without a second look: a gain that survives is not due to retrieved outcomes",
    ),
    "random_trigger": (
        "rows at random",
        "as many rows escalated, chosen by chance: a gain that survives is not due to knowledge of uncertain rows",
    ),
    "oracle_trigger": (
        "oracle",
        "upper bound, cannot be built: only the rows whose loss the second opinion did lower, which needs the label",
    ),
}
ORDERS = (  # order of escalation, name, color, dashed
    ("entropy", "most uncertain score first", "#2f6fdb", False),
    ("dual", "thinnest support first (dual)", "#e0662f", False),
    ("moved", "most corrected first", "#a4619b", False),
    ("predicted", "largest expected change first", "#7a4fd0", False),
    ("random", "by chance", "#8a919d", True),
    ("oracle", "oracle (cannot be built)", "#3a9b6a", True),
)


class Frontier(NamedTuple):
    """Quality against cost; ``all`` includes candidates that lose far more than the others, None if there are none."""

    names: list[Series]
    near: Drawing
    all: Drawing | None


class Detected(NamedTuple):
    """The detectable change, over all candidates."""

    median: float
    easiest: float


def extra_values(content: Evaluation, timings: Mapping[str, float]) -> dict[str, object]:
    """The values of ``report_extra.html``.

    Args:
        timings: measured time of every candidate relative to one pass, if known.
    """
    run = content if isinstance(content, TrainingEvaluation) else None
    extra_work = None if run is None else run.extra_work
    candidates = () if extra_work is None else extra_work.candidates
    uplift = None if extra_work is None else extra_work.uplift
    return {
        "run": run,
        "found": extra_work,
        "controls": CONTROLS,
        "warnings": warning_lines(content),
        "novelty": _novelty(content.novelty),
        "counts": {} if run is None else run.test_time.count_auc,
        "times": {c.name: _time(c, timings) for c in candidates},
        "frontier": _frontier(extra_work, timings) if extra_work is not None and candidates else None,
        "detectable": _detectable(candidates),
        "truth": extra_work is not None and extra_work.off.truth_distance is not None,
        "uplift_charts": _uplift_charts(uplift) if uplift else [],
        "areas": [(n, -uplift.curves[key].area) for key, n, *_ in ORDERS if key != "random" and key in uplift.curves]
        if uplift
        else [],
        "twice": None
        if run is None or run.thought_twice is None
        else _twice(run.thought_twice, run.test_time, timings),
    }


def warning_lines(content: Evaluation) -> list[str]:
    """Warnings about measured gains: validation unlike test, counts that predict the label."""
    counted = content.test_time.warnings if isinstance(content, TrainingEvaluation) else ()
    lines = [f"{line}; no claim about frequency is made" for line in counted]
    for entity, valid, test in _novelty(content.novelty):
        if abs(valid - test) > NOVELTY_GAP:
            lines.append(
                f"validation has {valid:.0%} rows with an unseen {entity} and test {test:.0%}: what was tuned on validation "
                "was tuned for other rows"
            )
    return lines


def _novelty(novelty: Novelty) -> list[tuple[str, float, float]]:
    """Entity and its share of unseen rows in validation and in test."""
    valid, test = novelty.valid, novelty.test
    return [(entity, valid[entity], test[entity]) for entity in ("user", "item") if entity in valid and entity in test]


def _frontier(extra_work: ExtraWork, timings: Mapping[str, float]) -> Frontier:
    points = [Point("one plain pass", 1.0, 0.0, color=PLAIN, tip=f"logloss {extra_work.off.logloss:.5f}")]
    for c in extra_work.candidates:
        value = c.change.value or 0.0  # a mean over rows is always finite
        color = NEUTRAL if not c.change.significant else GOOD if value < 0 else BAD
        words = (f"{c.passes:.2f} passes", _time(c, timings), f"logloss {signed(c.change, 5)}")
        tip = ", ".join(word for word in words if word)
        points.append(Point(c.name, c.passes, value, c.change.low, c.change.high, color, tip))
    near = [p for p in points if p.color != BAD]
    reach = max(abs(v) for p in near for v in (p.y, p.low, p.high) if v is not None)
    near += [p for p in points if p.color == BAD and p.y <= FAR * reach]
    names = [Series(n, c, ()) for n, c in (("better", GOOD), ("worse", BAD), ("chance explains it", NEUTRAL))]
    everything = _scatter(points, 280) if len(near) < len(points) else None
    return Frontier(names, _scatter(near, 430), everything)


def _scatter(points: list[Point], height: int) -> Drawing:
    x_label, y_label = "forward passes per row", "change of logloss"
    return scatter_chart(points, x_label=x_label, y_label=y_label, log_x=True, width=1080, height=height)


def _time(candidate: CandidateOnTest, timings: Mapping[str, float]) -> str:
    if candidate.name in timings:
        return f"{timings[candidate.name]:.2f}× time"
    return f"about {candidate.cost:.1f}× time" if candidate.cost is not None else ""


def _detectable(candidates: Sequence[CandidateOnTest]) -> dict[str, Detected]:
    """The detectable change per metric; empty if unknown."""
    values = {
        "logloss": [c.detectable.logloss for c in candidates if c.detectable.logloss],
        "auc": [c.detectable.auc for c in candidates if c.detectable.auc],
    }
    if not all(values.values()):
        return {}
    return {metric: Detected(median(changes), min(changes)) for metric, changes in values.items()}


class Twice(NamedTuple):
    """Sentences on what thinking twice did, the share of the gain that each choice of rows keeps on validation, and how far
    probabilities moved; None where there is nothing to draw."""

    lines: list[str]
    frontier: tuple[list[Series], Drawing] | None
    moved: tuple[list[Series], Drawing] | None


def _twice(found: ThoughtTwice, report: TestTimeReport, timings: Mapping[str, float]) -> Twice:
    subject = f"{found.candidate} {'ships' if found.ships else 'does not ship; it'}"
    lines = [
        f"{subject} {'and ' if found.ships else ''}gave a second look to {_of(found.looked, found.rows)} test rows"
    ]
    if found.looked:
        lines[0] += f", in {_of(found.requests_looked, found.requests)} requests (rows of one user within an hour)"
    if found.counted:
        lines.append(f"The counters of {_of(found.counted, found.rows)} rows were known and used")
    lines.append(f"Its first look changed logloss by {signed(found.first_change, 5)} against the plain model")
    if found.second_change is not None:
        lines.append(
            f"Its second look changed logloss by a further {signed(found.second_change, 5)} on the rows that got it"
        )
    if found.candidate in timings:
        lines.append(f"A request takes {timings[found.candidate]:.2f} times the time of the plain model")
    else:
        lines.append("Its measured time is in cost.json")
    frontiers = () if report.evidence is None else report.evidence.frontiers
    names = {key: (name, color, dashed) for key, name, color, dashed in ORDERS}
    series = [
        Series(names[f.trigger][0], names[f.trigger][1], _marks(f.shares, f.kept), names[f.trigger][2])
        for f in frontiers
        if f.trigger in names
    ]
    moved = [Series("change of the probability", "#2f6fdb", _marks(STEPS, found.moved))] if found.moved else []
    return Twice(
        lines,
        (
            series,
            line_chart(series, x_label="share of rows with a second look", y_label="share of the gain that remains"),
        )
        if series
        else None,
        (moved, line_chart(moved, x_label="share of the rows that were read again", y_label="changed by at most"))
        if moved
        else None,
    )


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / max(whole, 1):.0%})"


def _marks(xs: Sequence[float], ys: Sequence[float]) -> list[Mark]:
    return [Mark(x, y, tip=f"{x:.0%}: {y:.3f}") for x, y in zip(xs, ys, strict=True)]


def _uplift_charts(uplift: Uplift) -> list[tuple[list[Series], Drawing]]:
    """Uplift in the order of each trigger: without and with the upper bound."""
    candidate_change = uplift.change
    chosen = Series(
        "what its own trigger escalated",
        "#22262c",
        [
            Mark(
                uplift.share,
                candidate_change.value or 0.0,
                candidate_change.low,
                candidate_change.high,
                f"{uplift.share:.1%} of rows, {signed(candidate_change, 5)}",
            )
        ],
    )
    series = {
        key: _order(uplift, key, name, color, dashed) for key, name, color, dashed in ORDERS if key in uplift.curves
    }
    charts = []
    buildable = tuple(key for key in series if key != "oracle")
    for keys, more in ((buildable, [chosen]), (tuple(series), [])):
        shown_series = [series[key] for key in keys] + more
        charts.append(
            (shown_series, line_chart(shown_series, x_label="share of rows escalated", y_label="change of logloss"))
        )
    return charts


def _order(uplift: Uplift, key: str, name: str, color: str, dashed: bool) -> Series:
    curve = zip(uplift.shares, uplift.curves[key].change, strict=True)
    return Series(name, color, [Mark(x, y, tip=f"{x:.0%} of rows, {change(y, 5)}") for x, y in curve], dashed)
