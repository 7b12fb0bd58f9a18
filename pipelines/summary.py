"""What a run of the pipeline prints at its end."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from pipelines.run import QUARANTINE, RunResult, reasons_of
from thinktwice.console.results import print_results, shown
from thinktwice.files import read_json

EVALUATION = Path("report") / "evaluation.json"


def print_summary(console: Console, result: RunResult) -> None:
    """The results, the blessing with its reasons, and where quarantined rows and the reports lie."""
    print_results(console, read_json(result.bundle / EVALUATION))
    reasons = "; ".join(reasons_of(result.blessing))
    if result.blessed:
        console.print(f"\nBlessed and deployed: {reasons}", soft_wrap=True)
    else:
        console.print(f"\nNot blessed, the champion stays: {reasons}", soft_wrap=True)
    quarantined = read_json(result.quarantine / QUARANTINE)["rows_quarantined"]
    if quarantined:
        place = shown(result.quarantine)
        console.print(f"\n{quarantined:,} rows are in quarantine, {place}; with a mended schema:")
        replay = f"thinktwice data replay --quarantine {shlex.quote(place)} --out DIR --schema MENDED.yaml"
        console.print(f"  {replay}", soft_wrap=True)
    for name, path in (
        ("report of the model", result.model_report),
        ("report of the data", result.data_report),
        ("log of the run", result.log),
        ("state to serve from", result.state_dir),
    ):
        console.print(f"  {name:<20} {shown(path)}", soft_wrap=True)
