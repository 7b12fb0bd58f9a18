"""The command ``drift``."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from thinktwice.console.options import WORK, State, Work, state_folder


def drift(
    log: Annotated[Path, typer.Option(help="Folder of the prediction log.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle that served the rows.", show_default="that of the champion"),
    ] = None,
    state: State = None,
    work: Work = WORK,
    since: Annotated[
        datetime | None, typer.Option(help="Compare only rows served from this time on (UTC).", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Maximum number of rows to compare (complete requests).")] = 100_000,
    fail_above: Annotated[
        float,
        typer.Option(
            min=0, help="Population stability index above which a field has drifted, unless chance explains it."
        ),
    ] = 0.1,
    feedback: Annotated[
        Path | None,
        typer.Option(
            help="Event log of the feedback service: report how many clicks came later than feedback_delay.",
            show_default=False,
        ),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results to this JSON file.")] = None,
    html_out: Annotated[Path | None, typer.Option("--html", help="Write the report to this HTML file.")] = None,
) -> None:
    """Compare served rows with the training data, field by field. The exit status is 1 if a field has drifted."""
    from thinktwice.console.terminal import console_here
    from thinktwice.files import atomic_file, write_json
    from thinktwice.monitor.drift import drift_of_log
    from thinktwice.monitor.drift_page import print_drift, render
    from thinktwice.monitor.feedback import feedback_assumption
    from thinktwice.release.champion import require_champion

    if bundle is None:
        bundle = require_champion(state_folder(state, work), "--state, --work or --bundle").bundle_dir
    report = drift_of_log(log, bundle, rows, since=in_utc(since), threshold=fail_above)
    if feedback is not None:
        report = replace(report, feedback=feedback_assumption(feedback))
    print_drift(console_here(), report)
    if json_out is not None:
        write_json(json_out, report.as_json())
    if html_out is not None:
        with atomic_file(html_out) as temporary:
            temporary.write_text(render(report), encoding="utf-8")
    if report.drifted:
        raise typer.Exit(1)


def in_utc(moment: datetime | None) -> datetime | None:
    """A time from the command line, which has no zone, as UTC."""
    return None if moment is None else moment.replace(tzinfo=timezone.utc)
