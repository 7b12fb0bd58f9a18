"""`thinktwice tune`: search over the settings of a recipe."""

# Annotations stay real objects here: typer reads them.
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktwice.console.options import WORK, Work
from thinktwice.console.output import tell
from thinktwice.console.stop import on_stop
from thinktwice.errors import PipelineError
from thinktwice.interrupts import interruptible

if TYPE_CHECKING:
    from thinktwice.selection.study import TrialResult


def tune(
    minutes: Annotated[float, typer.Option(help="Budget of all trials together, in minutes.", min=0.01)] = 30.0,
    recipe: Annotated[str, typer.Option(help="Recipe to start from, its name or file.")] = "default",
    backbone: Annotated[
        str, typer.Option(help="Architecture, as for `thinktwice pipeline run`.", show_default="the recipe's")
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of the recipe, such as finetune.masked_rows=0.5; may repeat.", show_default=False
        ),
    ] = None,
    training_set: Annotated[
        Path | None, typer.Option(help="Training set folder.", show_default="that of the last run in --work")
    ] = None,
    out: Annotated[Path, typer.Option(help="Recipe file to write, for `thinktwice pipeline run --recipe`.")] = Path(
        "tuned.yaml"
    ),
    state: Annotated[
        Path | None,
        typer.Option(
            "--study", help="Folder of the search, which continues there after a kill.", show_default="tune in --work"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and the search.", min=0)] = 0,
    work: Work = WORK,
) -> None:
    """Search over rate, L2, length, sizes and augmentation on validation; the best settings become a recipe file."""
    if not math.isfinite(minutes):
        raise PipelineError(f"--minutes {minutes:g} is no budget: give a number of minutes")
    from pipelines.tune import PAGE, chosen_training
    from pipelines.tune import tune as search

    folder = work / "tune" if state is None else state
    data, found = chosen_training(settings or [], recipe, backbone, work, training_set)
    on_stop("stopped; run it again to continue the search")
    with interruptible():
        result = search(data, out, folder, found, minutes=minutes, seed=seed, on_trial=_shown)
    tell(f"{len(result.trials)} trials; the best has validation logloss {result.best.loss:.5f}: {folder / PAGE}")
    typer.echo(str(out))


def _shown(result: "TrialResult") -> None:
    loss = "" if result.loss is None else f", validation logloss {result.loss:.5f}"
    tell(f"trial {result.number + 1}: {result.state}{loss}")
