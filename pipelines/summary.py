"""Summary printed at the end of a pipeline run."""

from __future__ import annotations

import shlex

from rich.console import Console

from pipelines.run import QUARANTINE, RunResult
from thinktwice.console.output import say, shown
from thinktwice.evaluate.evaluation import recorded_evaluation
from thinktwice.evaluate.table import print_results
from thinktwice.files import read_json
from thinktwice.release.blessing import read_blessing


def print_summary(console: Console, result: RunResult) -> None:
    """Print the results, the blessing with its reasons, and the paths of quarantined rows and reports."""
    print_results(console, recorded_evaluation(result.bundle))
    reasons = "; ".join(read_blessing(result.blessing).reasons)
    verdict = "Blessed and deployed" if result.blessed else "Not blessed, the champion stays"
    say(console, f"\n{verdict}: {reasons}")
    quarantined = read_json(result.quarantine / QUARANTINE)["rows_quarantined"]
    if quarantined:
        quarantine_path = shown(result.quarantine)
        say(console, f"\n{quarantined:,} rows are in quarantine; with a mended schema they are judged again by:")
        replay = f"thinktwice data replay --quarantine {shlex.quote(quarantine_path)} --out DIR --schema MENDED.yaml"
        console.print(f"  {replay}", soft_wrap=True)
    console.print()
    for name, path in (
        ("report of the model", result.model_report),
        ("report of the data", result.data_report),
        ("training set", result.training_set),
        ("quarantine", result.quarantine),
        ("log of the run", result.log),
        ("state to serve from", result.state_dir),
    ):
        console.print(
            f"  {name:<20} {shown(path)}", soft_wrap=True
        )  # paths must not be wrapped, so that they can be copied
