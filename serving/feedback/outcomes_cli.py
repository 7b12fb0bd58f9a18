"""The command ``outcomes``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktwice.console.options import WORK, State, Work, state_folder

if TYPE_CHECKING:
    from serving.feedback.outcomes import Joined
    from thinktwice.schema import LogSchema

DAY = 86_400.0


def outcomes(
    log: Annotated[Path, typer.Option(help="Folder of the event log of the feedback service.")],
    exposures: Annotated[
        Path | None, typer.Option(help="Folder of the exposures.", show_default="exposures in the folder of --work")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.", show_default="outcomes in the folder of --work")
    ] = None,
    window: Annotated[float, typer.Option(min=1, help="Seconds after its exposure within which a click counts.")] = DAY,
    lateness: Annotated[
        float, typer.Option(min=0, help="Seconds after the window within which a click must have arrived.")
    ] = 0.0,
    schema: Annotated[
        Path | None,
        typer.Option(help="Schema of the model that served, for log.parquet.", show_default="that of the champion"),
    ] = None,
    include_running: Annotated[
        bool,
        typer.Option(
            "--include-running",
            help="Keep rows of running experiments in log.parquet. A model that is trained on them has seen every arm's effect.",
        ),
    ] = False,
    memory: Annotated[
        str, typer.Option(help="Memory of the join; what does not fit goes to disk beside --out.")
    ] = "2GB",
    state: State = None,
    work: Work = WORK,
) -> None:
    """Join exposures with the clicks of the feedback service: what was shown, and whether it was clicked within the window.

    Writes outcomes.parquet (a row per exposure whose window has closed), outcomes.json (all counts) and, for training, log.parquet
    with its schema.yaml; tables are folders of parquet files. An exposure whose window is still open is left to a later run.
    """
    from serving.feedback.outcomes import join
    from serving.gateway.exposures_cli import damaged_text
    from thinktwice.experiment.outcomes import Window
    from thinktwice.experiment.record import ended_experiments

    folder = out or work / "outcomes"
    done = join(
        log,
        exposures or work / "exposures",
        folder,
        Window(seconds=window, late_seconds=lateness),
        schema=_schema(schema, state_folder(state, work)),
        ended=ended_experiments(work / "experiments"),
        include_running=include_running,
        memory=memory,
    )
    typer.echo(
        f"{done.counts.final:,} outcomes, {done.counts.matched:,} of them clicked, complete up to {done.watermark:%Y-%m-%d %H:%M:%S} UTC: {folder}"
    )
    if done.damaged:
        typer.echo(damaged_text(done.damaged, done.set_aside))
    _print_counts(done)
    if done.log is None:
        typer.echo("no log for training: there is no champion whose schema it would have, pass --schema")


def _schema(path: Path | None, state: Path) -> LogSchema | None:
    from thinktwice.release.champion import read_champion
    from thinktwice.schema import SCHEMA_FILE, load_schema

    if path is not None:
        return load_schema(path)
    champion = read_champion(state)
    return None if champion is None else load_schema(champion.bundle_dir / SCHEMA_FILE)


def _print_counts(done: Joined) -> None:
    from thinktwice.console.output import Column, Record, print_table
    from thinktwice.console.terminal import console_here

    values = done.counts.model_dump() | (done.log.model_dump() if done.log else {})
    records = [Record((f"{values[name]:,}", name, text)) for name, text in TEXT.items() if values.get(name)]
    if records:
        print_table(console_here(), [Column("number", right=True), Column("what"), Column("meaning")], records)


TEXT = {
    "open": "exposures whose window has not closed: a later run writes them",
    "duplicate": "further clicks on an exposure",
    "late": "clicks after the window, or that arrived after it",
    "before_exposure": "clicks before their exposure: a clock is wrong",
    "unmatched": "clicks without an exposure",
    "older": "clicks before the first exposure, without one",
    "pending": "clicks on open exposures, or on such as are not collected yet",
    "broken": "clicks without item",
    "rows": "rows of log.parquet",
    "running": "rows of running experiments, not in log.parquet",
    "without_ids": "rows without the id of user or item, not in log.parquet",
}
