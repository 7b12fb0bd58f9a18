"""Summary printed at the end of a pipeline run."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from pipelines.run import QUARANTINE, RunResult
from thinktwice.console.output import Column, Record, print_table, say, shown
from thinktwice.data.training_set_info import INFO_FILE, TrainingSetInfo
from thinktwice.errors import DataError
from thinktwice.evaluate.evaluation import recorded_evaluation
from thinktwice.evaluate.table import print_results
from thinktwice.files import read_json
from thinktwice.release.blessing import read_blessing
from thinktwice.versioned import read_result

PARTS = {"train": "train", "valid": "validation", "test": "test"}


def print_summary(console: Console, result: RunResult) -> None:
    """Print the results, the blessing with its reasons, and the paths of quarantined rows and reports."""
    print_parts(console, result.training_set)
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


def print_parts(console: Console, training_set: Path) -> None:
    """Print the rows, dates and click rate of each part, and the shares of its rows whose user or item is not in train, and that have no
    user."""
    info = read_result(training_set / INFO_FILE, TrainingSetInfo, DataError, "run the pipeline again")
    entities = [entity for entity in ("user", "item") if entity in info.parts["train"].unseen_share]
    heads = [Column("", right=False), *(Column(name) for name in ("rows", "from", "to", "click rate"))]
    heads += [Column(f"unseen {entity}s") for entity in entities]
    has_anonymous = info.parts["train"].anonymous_share is not None
    heads += [Column("no user")] if has_anonymous else []
    records = []
    for part, title in PARTS.items():
        described = info.parts[part]  # type: ignore[index]
        novelty = ["" if part == "train" else f"{described.unseen_share[entity]:.1%}" for entity in entities]
        novelty += [f"{described.anonymous_share:.1%}"] if described.anonymous_share is not None else []
        dates = [instant[:10] for instant in described.window]
        records.append(Record((title, f"{described.rows:,}", *dates, f"{described.click_rate:.2%}", *novelty)))
    say(console, f"\n{info.rows:,} rows, split {info.split.words}\n")
    print_table(console, heads, records)
