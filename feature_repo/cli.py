"""The verb ``skew``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

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
            help="Later clean log that covers the time of serving; features are computed from it anew.",
            show_default="the tables of the store",
        ),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Compare only what was served from this time on (UTC).", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows compared at most, whole requests.")] = 20_000,
    max_mismatch: Annotated[
        float, typer.Option(min=0, max=1, help="Share of differing rows above which a field is skewed.")
    ] = 0.01,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    html_out: Annotated[Path | None, typer.Option("--html", help="Write the report as a page here.")] = None,
) -> None:
    """Compare served features with a later point-in-time retrieval of the same users and items; 1 when a field is skewed."""
    from feature_repo.skew import measure_skew
    from thinktwice.champion import require_champion
    from thinktwice.console.terminal import console_here
    from thinktwice.files import atomic_file, write_json
    from thinktwice.monitor.cli import in_utc
    from thinktwice.monitor.skew_page import print_skew, render

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
