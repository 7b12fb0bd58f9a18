"""The verb ``drift``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def drift(
    log: Annotated[Path, typer.Option(help="Folder of the prediction log.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle that served.", show_default="that of the champion in --state"),
    ] = None,
    state: Annotated[Path, typer.Option(help="State folder.")] = Path(".thinktwice/state"),
    rows: Annotated[int, typer.Option(min=1, help="Rows compared at most.")] = 100_000,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Compare live traffic with what the model was trained on, field by field; 1 when something has drifted."""
    from thinktwice.champion import read_champion
    from thinktwice.errors import BundleError
    from thinktwice.files import write_json
    from thinktwice.monitor.from_log import drift_of_log

    if bundle is None:
        champion = read_champion(state)
        if champion is None:
            raise BundleError(f"{state} holds no champion to compare with: give --bundle")
        bundle = champion.bundle_dir
    report = drift_of_log(log, bundle, rows)
    console = Console()
    out = Table(title=f"{report.rows:,} served rows of {report.requests:,} requests against training")
    for name in ("what", "kind", "PSI", "noise", "JS", "before", "now", ""):
        out.add_column(name, justify="left" if name in ("what", "kind", "") else "right")
    for moved in sorted((*report.fields, *report.scores), key=lambda m: -m.psi):
        out.add_row(
            moved.name,
            moved.kind,
            f"{moved.psi:.3f}",
            f"{moved.noise:.3f}",
            f"{moved.js:.3f}",
            f"{moved.before:.3f}",
            f"{moved.now:.3f}",
            "drifted" if moved.drifted else "",
        )
    console.print(out)
    console.print(
        "before and now: the share of missing and unknown values of a field, the mean of a score", highlight=False
    )
    before, now = report.trigger_rate
    console.print(
        f"rows with a second opinion: {100 * before:.1f} % on validation, {100 * now:.1f} % now", highlight=False
    )
    if json_out is not None:
        write_json(json_out, report.as_json())
    if report.drifted:
        console.print(f"drifted: {', '.join(report.drifted)}")
        raise typer.Exit(1)
    console.print("nothing has drifted")
