"""The command ``evaluate``: a bundle on the test rows of a training set, alone or against another bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thinktwice.console.options import LAST_RUN, WORK, State, Work, state_folder
from thinktwice.errors import DataError
from thinktwice.files import read_json


def evaluate(
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder of the bundle to evaluate.", show_default="that of the champion"),
    ] = None,
    training_set: Annotated[
        Path | None,
        typer.Option(help="Training set folder with the test rows.", show_default="that of the last run in --work"),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Folder of a second bundle, evaluated on the same rows.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, evaluation.json and evaluation.csv.")
    ] = None,
    state: State = None,
    work: Work = WORK,
) -> None:
    """Evaluate a bundle on test rows, and optionally compare it with another bundle."""
    from thinktwice.console.output import say
    from thinktwice.console.terminal import console_here
    from thinktwice.evaluate.bundles import evaluate_bundles
    from thinktwice.evaluate.evaluation import recorded_evaluation
    from thinktwice.evaluate.table import print_extra_work, print_metrics
    from thinktwice.release.champion import require_champion

    if bundle is None:
        bundle = require_champion(state_folder(state, work), "--state, --work or --bundle").bundle_dir
    if training_set is None:
        training_set = _last_training_set(work)
    content = evaluate_bundles(bundle, training_set, against, out)
    console = console_here()
    print_metrics(console, content)
    for line in content.verdict:
        say(console, line)
    made = recorded_evaluation(bundle)
    if made.extra_work.candidates:
        console.print()
        print_extra_work(console, made)
        say(console, made.test_time.sentence)
    console.print(f"training set: {training_set}", soft_wrap=True, markup=False)
    if out is not None:
        console.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)


def _last_training_set(work: Path) -> Path:
    record = work / LAST_RUN
    if not record.is_file():
        raise DataError(
            f"{work} contains no finished run: run `thinktwice pipeline run` first, or set --work or --training-set"
        )
    return Path(read_json(record)["training_set"])
