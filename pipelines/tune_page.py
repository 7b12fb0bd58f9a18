"""The page of a search: the best loss so far, every setting against the loss, and all trials."""

from __future__ import annotations

from pathlib import Path

from thinktwice.pages import templates
from thinktwice.pages.charts import Mark, Series, line_chart
from thinktwice.pages.charts_scatter import Point, scatter_chart
from thinktwice.selection.study import StudyResult, TrialResult

BEST, TRIAL = "#2f6fdb", "#7a818c"


def render_study(found: StudyResult, log: str, minutes: float) -> str:
    """The page, one file without scripts and external resources."""
    complete = [trial for trial in found.trials if trial.loss is not None]
    so_far, best = [], float("inf")
    for trial in complete:
        best = min(best, trial.loss or 0.0)
        so_far.append(Mark(trial.number + 1, best, tip=f"trial {trial.number + 1}: {best:.5f}"))
    names = sorted({name for trial in found.trials for name in trial.settings})
    number = {state: sum(trial.state == state for trial in found.trials) for state in ("complete", "pruned", "fail")}
    return str(
        templates.render(
            Path(__file__).parent,
            "tune_page.html",
            title=f"Search over settings for {log}",
            subtitles=[
                f"{number['complete']} trials complete, {number['pruned']} pruned, {number['fail']} failed, "
                f"in {sum(trial.seconds for trial in found.trials) / 60:.1f} of {minutes:g} minutes"
            ],
            lines=[
                f"Trial {found.best.number + 1} is the best: validation logloss {found.best.loss:.5f}.",
                "It was chosen on validation rows; the evaluation of a run by its recipe file shows what it is worth on test rows.",
            ],
            best=line_chart(
                [Series("best so far", BEST, so_far)], x_label="trial", y_label="validation logloss", width=760
            ),
            settings=[(name, chart) for name in names if (chart := _against(name, complete)) is not None],
            names=names,
            trials=found.trials,
            value=_value,
        )
    )


def _against(name: str, trials: list[TrialResult]) -> object | None:
    """The loss against a numeric setting."""
    points = [
        Point("", float(trial.settings[name]), trial.loss or 0.0, color=TRIAL, tip=f"trial {trial.number + 1}")
        for trial in trials
        if isinstance(trial.settings.get(name), int | float)
    ]
    if len({point.x for point in points}) < 2:
        return None
    return scatter_chart(
        points, x_label=name, y_label="validation logloss", zero=False, frontier=False, width=420, height=280
    )


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
