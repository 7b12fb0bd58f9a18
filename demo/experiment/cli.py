"""``thinktwice experiment demo``: live experiments on simulated users."""

# Annotations stay real objects here: typer reads them.
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

# The command imports the demonstration when it runs, because every command of the group loads this file.

WORK = Path(".thinktwice/demo-ab")
RunName = Literal["better", "worse", "same"]


def demo(
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--run", help="Experiment to run: better, worse or same; can be repeated.", show_default="all three"
        ),
    ] = None,
    treatment: Annotated[
        str,
        typer.Option(
            help="Treatment of the run better: a test-time mode of the same weights, or a bundle; one that does not help ends in no decision."
        ),
    ] = "corrected",
    rate: Annotated[float, typer.Option(min=1, max=5000, help="Visits of simulated users per second.")] = 80.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated world and its users.")] = 0,
    work: Annotated[Path, typer.Option("--folder", help="Folder of everything it writes; removed first.")] = WORK,
    server: Annotated[Literal["torchserve", "kserve"], typer.Option(help="Server of each arm.")] = "torchserve",
) -> None:
    """Run three live experiments on simulated users: one ends in a promotion, one in a roll-back, one in no decision."""
    from demo.experiment.session import run_demo

    known = get_args(RunName)
    for run in runs or ():
        if run not in known:
            raise typer.BadParameter(f"{run!r} is not one of {', '.join(known)}", param_hint="--run")
    chosen = [run for run in known if not runs or run in runs]
    run_demo(chosen, treatment=treatment, rate=rate, seed=seed, work=work, server=server)
