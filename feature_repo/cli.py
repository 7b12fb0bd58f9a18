"""The commands ``skew`` and ``score``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from thinktwice.console.options import WORK, State, Work, state_folder


def skew(
    log: Annotated[Path, typer.Option(help="Folder of the prediction log.")],
    store: Annotated[
        Path | None,
        typer.Option(help="Feature store folder to compare with.", show_default="that of the champion"),
    ] = None,
    state: State = None,
    work: Work = WORK,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="Later clean log that covers the serving time; features are recomputed from it.",
            show_default="the tables of the store",
        ),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Compare only rows served from this time on (UTC).", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Maximum number of rows to compare (complete requests).")] = 20_000,
    max_mismatch: Annotated[
        float, typer.Option(min=0, max=1, help="Share of differing rows above which a field is skewed.")
    ] = 0.01,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results to this JSON file.")] = None,
    html_out: Annotated[Path | None, typer.Option("--html", help="Write the report to this HTML file.")] = None,
) -> None:
    """Compare served features with a point-in-time lookup of the same users and items. The exit status is 1 if a field is skewed."""
    from feature_repo.skew import measure_skew
    from thinktwice.console.terminal import console_here
    from thinktwice.files import atomic_file, write_json
    from thinktwice.monitor.cli import in_utc
    from thinktwice.monitor.skew_page import print_skew, render
    from thinktwice.release.champion import require_champion

    if store is None:
        store = require_champion(state_folder(state, work), "--state, --work or --store").feature_store_dir
    report = measure_skew(log, store, rows, clean_dir=clean, since=in_utc(since))
    print_skew(console_here(), report, max_mismatch)
    if json_out is not None:
        write_json(json_out, report.as_json(max_mismatch))
    if html_out is not None:
        with atomic_file(html_out) as temporary:
            temporary.write_text(render(report, max_mismatch), encoding="utf-8")
    if report.skewed(max_mismatch):
        raise typer.Exit(1)


def score(
    source: Annotated[Path, typer.Argument(help="File of rows to score: parquet, CSV, TSV or JSON lines.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write: the same rows with their scores.")],
    features: Annotated[
        Literal["point-in-time", "online", "given"],
        typer.Option(
            help="Source of user and item features: as of each row's time, the online store now, or the columns of the file."
        ),
    ] = "given",
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of the bundle.", show_default="that of the champion")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Feature store folder of the model.", show_default="that of the champion"),
    ] = None,
    state: State = None,
    work: Work = WORK,
    request: Annotated[
        str | None,
        typer.Option(
            help="Column that identifies requests; without it, rows are scored independently.", show_default=False
        ),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="Clean log to count, for a model that reads counters, with --features point-in-time.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Score a file of rows with a bundle. Scores equal those of a server for the same values."""
    from rich.progress import Progress

    from feature_repo.score import score_file
    from thinktwice.console.terminal import console_here
    from thinktwice.release.champion import require_champion

    if bundle is None:
        bundle = require_champion(state_folder(state, work), "--state, --work or --bundle").bundle_dir
    if store is None and features != "given":
        store = require_champion(state_folder(state, work), "--state, --work or --store").feature_store_dir
    console = console_here(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("score", total=None)
        done = score_file(
            source,
            out,
            bundle,
            features=features,
            store_dir=store,
            request=request,
            clean_dir=clean,
            on_progress=lambda rows, total: progress.update(bar, completed=rows, total=total),
        )
    typer.echo(f"{done.rows:,} rows scored by {done.model_version}, {done.escalated:,} in more than one pass: {out}")
