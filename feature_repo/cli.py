"""The verb ``skew``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def skew(
    log: Annotated[Path, typer.Option(help="Folder of the prediction log.")],
    store: Annotated[
        Path | None,
        typer.Option(help="Feature store folder to compare with.", show_default="that of the champion in --state"),
    ] = None,
    state: Annotated[Path, typer.Option(help="State folder.")] = Path(".thinktwice/state"),
    rows: Annotated[int, typer.Option(min=1, help="Rows compared at most.")] = 20_000,
    max_mismatch: Annotated[
        float, typer.Option(min=0, max=1, help="Share of differing rows above which a field is skewed.")
    ] = 0.01,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Compare served features with a later point-in-time retrieval of the same users and items; 1 when a field is skewed."""
    from feature_repo.skew import measure_skew
    from thinktwice.champion import read_champion
    from thinktwice.errors import FeatureStoreError
    from thinktwice.files import write_json

    if store is None:
        champion = read_champion(state)
        if champion is None:
            raise FeatureStoreError(f"{state} holds no champion whose store could be compared with: give --store")
        store = champion.feature_store_dir
    report = measure_skew(log, store, rows)
    console = Console()
    out = Table(title=f"{report.rows:,} served rows against the feature store at the same moments")
    for name in ("field", "compared", "differ", "only served", "only later", ""):
        out.add_column(name, justify="left" if name in ("field", "") else "right")
    for field in sorted(report.fields, key=lambda f: -f.rate):
        out.add_row(
            field.name,
            f"{field.rows:,}",
            f"{100 * field.rate:.2f} %",
            str(field.only_served),
            str(field.only_later),
            "skewed" if field.rate > max_mismatch else "",
        )
    console.print(out)
    for entity, count in report.defaulted.items():
        if count:
            console.print(f"{count:,} rows were served with defaults for the {entity} and are left out of its fields")
    found = report.as_json(max_mismatch)
    if json_out is not None:
        write_json(json_out, json.loads(json.dumps(found)))
    skewed = [field.name for field in report.fields if field.rate > max_mismatch]
    if skewed:
        console.print(f"skewed: {', '.join(skewed)}")
        raise typer.Exit(1)
    console.print("no field is skewed")
