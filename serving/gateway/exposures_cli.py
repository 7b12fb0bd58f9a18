"""The command ``exposures``."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktwice.console.options import WORK, Work

if TYPE_CHECKING:
    from thinktwice.experiment.join_counts import JoinCounts

SETTLE = 120.0  # seconds; a predictor writes a part every 60 by default


def exposures(
    files: Annotated[list[Path], typer.Argument(help="Experiment files; several only of one exclusive group.")],
    served: Annotated[
        list[Path], typer.Option(help="Folder of a prediction log; repeat it for each arm that has its own.")
    ],
    gateway: Annotated[
        Path | None, typer.Option(help="Folder of the gateway.", show_default="gateway in the folder of --work")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="exposures in the folder of --work")
    ] = None,
    settle: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds after which gateway and predictors have written a request; younger ones are left to the next run. "
            "More than part_seconds of the predictors; 0 when they have ended.",
        ),
    ] = SETTLE,
    memory: Annotated[
        str, typer.Option(help="Memory of the join; what does not fit goes to disk beside --out.")
    ] = "2GB",
    work: Work = WORK,
) -> None:
    """Join the access log of the gateway with the prediction logs of the arms: who was served what, and what is missing.

    Writes exposures.parquet (a row per served item whose answer reached the caller), requests.parquet (a row per enrolled request)
    and exposures.json (all counts). A run reads what is new in the logs, and requests of the last hour; the folder is replaced as a whole.
    """
    from serving.gateway.collect import collect
    from thinktwice.experiment.file import load_experiment

    watermark = datetime.now(timezone.utc) - timedelta(seconds=settle)
    folder = out or work / "exposures"
    done = collect(
        [load_experiment(file) for file in files], gateway or work / "gateway", served, folder, watermark, memory
    )
    typer.echo(f"{done.counts.exposures:,} exposures in {done.counts.joined:,} answers: {folder}")
    if done.damaged:
        typer.echo(damaged_text(done.damaged, done.set_aside))
    _print_counts(done.counts)


def damaged_text(number: int, aside: str | None) -> str:
    """What is said about files of an earlier run that were damaged."""
    where = "" if aside is None else f"; the damaged files are in {aside}"
    return (
        f"{number} files kept by the last run were damaged or missing: everything was joined again from the logs{where}"
    )


def _print_counts(counts: JoinCounts) -> None:
    from thinktwice.console.output import Column, Record, print_table
    from thinktwice.console.terminal import console_here

    shown = [(name, text) for name, text in TEXT.items() if getattr(counts, name)]
    records = [Record((f"{getattr(counts, name):,}", name, text)) for name, text in shown]
    if records:
        print_table(console_here(), [Column("number", right=True), Column("what"), Column("meaning")], records)


TEXT = {
    "requests": "requests in the access log",
    "unanswered": "requests answered with an error, or not at all",
    "lost": "answered, enrolled requests without a row in a prediction log",
    "unlogged": "the same of requests that are not enrolled: the log may be a sample of them",
    "unnamed": "answered requests whose answer names no arm",
    "open": "requests after the watermark: the next run counts them",
    "repeated": "further lines with the request id of another",
    "broken": "lines that are not JSON or have no request id",
    "torn": "last lines that are cut off",
    "joined": "answers that reached the caller, with their rows",
    "superseded": "answers of a server that did not reach the caller: another one's did",
    "shadow": "answers to copies",
    "direct": "answers to requests that did not come through a gateway",
    "unexplained": "answers to requests of a gateway without a line in its access log",
    "ambiguous": "answers to a request id that different users sent",
    "doubled": "answers with several rows for a position: the first counts",
    "skewed": "answers whose server's clock is off by more than a minute",
    "wrong_arm": "answers that contradict the assignment",
    "units_in_two_arms": "users seen in two arms",
}
