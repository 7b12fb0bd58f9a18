"""The verb ``evaluate``: a bundle on the test rows of a training set, alone or against another bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thinktwice.errors import DataError
from thinktwice.files import read_json

WORK = Path(".thinktwice")


def evaluate(
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder of the bundle to evaluate.", show_default="the champion of .thinktwice/state"),
    ] = None,
    training_set: Annotated[
        Path | None,
        typer.Option(
            help="Training set folder; its test rows are scored.", show_default="that of the last `pipeline run`"
        ),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Folder of a bundle to compare with, on the same rows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and report.html.")] = None,
) -> None:
    """Evaluate a bundle on test rows, and compare it with another one."""
    from thinktwice.console.terminal import Terminal
    from thinktwice.evaluate.bundles import evaluate_bundles, recorded_evaluation
    from thinktwice.evaluate.table import extra_work_table, metrics_table

    bundle = bundle or _champion()
    content = evaluate_bundles(bundle, training_set or _last_training_set(), against, out)
    console = Terminal()
    console.print(metrics_table(content))
    for line in content["verdict"]:
        console.print(line)
    made = recorded_evaluation(bundle)
    if made.get("extra_work", {}).get("candidates"):
        console.print()
        console.print(extra_work_table(made))
        console.print(made["test_time"]["sentence"])
    if out is not None:
        console.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def _champion() -> Path:
    from thinktwice.champion import require_champion

    return require_champion(WORK / "state", "--bundle").bundle_dir


def _last_training_set() -> Path:
    record = WORK / "last_run.json"
    if not record.is_file():
        raise DataError(f"{WORK} holds no finished run: run `thinktwice pipeline run` first, or give --training-set")
    return Path(read_json(record)["training_set"])
