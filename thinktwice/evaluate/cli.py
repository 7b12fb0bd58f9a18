"""The verb ``evaluate``: a bundle on the test rows of a training set, alone or against another bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle to evaluate.")],
    training_set: Annotated[Path, typer.Option(help="Training set folder; its test rows are scored.")],
    against: Annotated[Path | None, typer.Option(help="Folder of a bundle to compare with, on the same rows.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and report.html.")] = None,
) -> None:
    """Evaluate a bundle on test rows, and compare it with another one."""
    from rich.console import Console

    from thinktwice.evaluate.bundles import evaluate_bundles
    from thinktwice.evaluate.table import metrics_table

    content = evaluate_bundles(bundle, training_set, against, out)
    console = Console()
    console.print(metrics_table(content))
    for line in content["verdict"]:
        console.print(line, highlight=False)
    if out is not None:
        console.print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True)
