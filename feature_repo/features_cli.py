"""The commands ``features publish``, ``list`` and ``refresh``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thinktwice.console.options import WORK, State, Work, state_folder

app = typer.Typer(
    help="Publish feature versions in a shared registry, and bring the online values of served features up to date.",
    no_args_is_help=True,
)

Store = Annotated[
    Path | None, typer.Option(help="Feature store folder of a model.", show_default="that of the champion")
]


@app.command("publish")
def publish_(
    store: Store = None,
    state: State = None,
    work: Work = WORK,
    location: Annotated[
        str,
        typer.Option(help="Where other consumers find the folder, e.g. s3://BUCKET/FOLDER.", show_default="its path"),
    ] = "",
) -> None:
    """Publish the definitions of a feature store in the registry of THINKTWICE_FEAST_REGISTRY, for discovery and other consumers."""
    from feature_repo.shared_registry import publish, registry_url

    found = publish(_store(store, state, work), registry_url(), location)
    typer.echo(found.feature_service if found else "a log without users and items: nothing to publish")


@app.command("list")
def list_() -> None:
    """List the feature versions in the registry of THINKTWICE_FEAST_REGISTRY, the latest data first."""
    from feature_repo.shared_registry import published, registry_url

    for each in published(registry_url()):
        typer.echo(f"{each.feature_service}  {each.online_store}  {each.start} to {each.end}  {each.location}")


@app.command("refresh")
def refresh_(
    clean: Annotated[Path, typer.Argument(help="Clean log, with all impressions that the features count.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and a record of what was written.")],
    store: Store = None,
    state: State = None,
    work: Work = WORK,
    until: Annotated[
        str,
        typer.Option(
            help="Write rows that are valid before this time, e.g. 2024-03-01.",
            show_default="the midnight that closes the log's last day",
        ),
    ] = "",
    window_days: Annotated[
        int, typer.Option(min=0, max=3650, help="Write only rows of so many days before the end; 0 writes all.")
    ] = 0,
) -> None:
    """Write the features of a later log to the Redis of a served model, with the definitions of its feature store, and read them back."""
    from feature_repo.refresh import refresh

    done = refresh(clean, _store(store, state, work), out, until=until, window_days=window_days)
    for view in done.views:
        typer.echo(f"{view.name}: {view.keys:,} keys, {view.newer:,} of them newer online")
    typer.echo(f"{done.feature_version} is up to date from {done.start} to {done.end}")


def _store(store: Path | None, state: Path | None, work: Path) -> Path:
    from thinktwice.release.champion import require_champion

    if store is not None:
        return store
    return require_champion(state_folder(state, work), "--state, --work or --store").feature_store_dir
