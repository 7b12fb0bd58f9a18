"""`thinktwice runs`: list, compare and remove the runs of a work folder."""

# Annotations stay real objects here: typer reads them.
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from thinktwice.console.options import WORK, State, Work, state_folder
from thinktwice.console.output import Column, Record, print_table, say, tell
from thinktwice.errors import PipelineError

if TYPE_CHECKING:
    from pipelines.runs.clean import Plan
    from pipelines.runs.records import Run
    from thinktwice.evaluate.side_by_side import Change, SideBySide

app = typer.Typer(name="runs", help="List, compare and remove training runs.", add_completion=False)

NOT_DEFINED = "–"
LEAST_COMPARED = 2


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, state: State = None, work: Work = WORK) -> None:
    """List the training runs of a work folder; the subcommands compare and remove them."""
    if context.invoked_subcommand is not None:
        if state is not None or work != WORK:
            raise PipelineError(
                f"give --work and --state behind the command: thinktwice runs {context.invoked_subcommand}"
            )
        return
    from pipelines.runs.records import require_runs, short_names
    from thinktwice.console.terminal import console_here
    from thinktwice.release.champion import read_champion

    found = require_runs(work)
    champion = read_champion(state_folder(state, work))
    names = short_names(found)
    heads = [
        Column("run", right=False),
        Column("data", right=False, wraps=True),
        Column("recipe", right=False, wraps=True),
    ]
    heads += [*(Column(name) for name in ("seed", "AUC", "logloss")), Column("verdict", right=False, wraps=True)]
    records = []
    for run in found:
        serving = champion is not None and run.bundle_hash == champion.info.bundle_hash
        described = run.arguments
        auc, logloss = _recorded(run)
        records.append(
            Record(
                (
                    names[run.name],
                    "" if described is None else described.data,
                    "" if described is None else described.training,
                    "" if described is None else str(described.seed),
                    auc,
                    logloss,
                    f"{run.verdict}{' (the champion)' if serving else ''}",
                ),
                "bold" if serving else "",
            )
        )
    console = console_here()
    print_table(console, heads, records)
    say(
        console, f"\nAUC and logloss are of the model that ships, on the test rows of its run; {NOT_DEFINED}: no model."
    )


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(help="Runs by name or its beginning, the baseline first; last is the newest.")
    ],
    work: Work = WORK,
) -> None:
    """Compare runs side by side, with paired intervals where their test rows are the same."""
    from pipelines.runs.records import named, require_runs, short_names
    from thinktwice.evaluate.side_by_side import Contestant, compare_runs

    found = require_runs(work)
    chosen = list({run.name: run for run in (named(found, name) for name in names)}.values())
    if len(chosen) < LEAST_COMPARED:
        raise PipelineError("give at least two different runs to compare: `thinktwice runs` lists them")
    short = short_names(found)
    contestants = []
    for run in chosen:
        bundle, training_set = run.bundle, run.training_set
        if run.arguments is None or bundle is None or training_set is None:
            raise PipelineError(f"run {short[run.name]} has no model to compare ({run.verdict}): leave it out")
        contestants.append(
            Contestant(short[run.name], run.arguments.settings, run.arguments.seed, bundle, training_set)
        )
    _print_comparison(
        compare_runs(contestants), {run.arguments.settings: run for run in chosen if run.arguments}, short
    )


@app.command()
def clean(
    keep: Annotated[int, typer.Option(help="Keep this many of the newest runs.", min=1)] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    state: State = None,
    work: Work = WORK,
) -> None:
    """Remove old runs and say what is freed.

    Never removes what the champion, a challenger, a running experiment or the last finished run needs.
    """
    from rich.filesize import decimal

    from pipelines.runs import clean as cleaning
    from pipelines.runs.records import is_running

    folder = state_folder(state, work)
    if is_running(work):
        raise PipelineError(f"a run works in {work}: clean when it has ended")
    made = cleaning.plan(work, folder, keep)
    _print_plan(made)
    if not made.removals and not made.tasks:
        tell("nothing to remove")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise PipelineError("nothing was removed: give --yes to remove it without being asked")
        if not typer.confirm(f"Remove {decimal(made.size)}?"):
            tell("nothing was removed")
            return
    cleaning.clean(work, folder, keep, made)
    tell(f"removed {len(made.removals)} run{'' if len(made.removals) == 1 else 's'}, {decimal(made.size)}")


def _recorded(run: "Run") -> tuple[str, str]:
    """AUC and logloss of the model that ships."""
    from thinktwice.errors import BundleError
    from thinktwice.evaluate.evaluation import recorded_evaluation

    if run.bundle is None:
        return NOT_DEFINED, NOT_DEFINED
    try:
        evaluation = recorded_evaluation(run.bundle)
    except BundleError:
        return "damaged", "damaged"
    metrics = evaluation.column(evaluation.shipped).metrics
    return _number(metrics.auc), _number(metrics.logloss)


def _print_comparison(found: "SideBySide", by_settings: "dict[str, Run]", short: dict[str, str]) -> None:
    from thinktwice.console.terminal import console_here

    console = console_here()
    first = found.sides[0].contestant.name
    heads = [Column("run", right=False), Column("recipe", right=False, wraps=True)]
    heads += [Column(name) for name in ("seed", "test rows", "AUC", "logloss", "GAUC", "ECE", "cost")]
    records, changes = [], []
    for side in found.sides:
        name, described, metrics = side.contestant.name, by_settings[side.contestant.settings].arguments, side.metrics
        numbers = (metrics.auc, metrics.logloss, metrics.gauc, metrics.ece)
        cells = (str(side.contestant.seed), f"{side.rows:,}", *map(_number, numbers), f"× {side.passes:.2f}")
        records.append(Record((name, "" if described is None else described.training, *cells)))
        if side.change is not None:
            changes.append(Record((name, *_changes(side.change))))
    print_table(console, heads, records)
    say(console, "\nOn the test rows of each run; cost is forward passes per row.\n")
    if changes:
        heads = [
            Column(f"change from {first}", right=False),
            Column("AUC", right=False),
            Column("logloss", right=False),
        ]
        print_table(console, heads, changes)
        say(console, "\nOn the same rows: paired 95 % intervals, clustered by user, each by itself.")
    if others := [side.contestant.name for side in found.sides if not side.same_rows]:
        say(console, f"Not the test rows of {first}, so the difference is not stated: {', '.join(others)}.")
    if not found.over_seeds:
        return
    heads = [
        Column("over seeds", right=False, wraps=True),
        Column("seeds", right=False),
        Column("AUC"),
        Column("change", right=False),
    ]
    heads += [Column("logloss"), Column("change", right=False)]
    records = []
    for group in found.over_seeds:
        described = by_settings[group.settings].arguments
        words = "" if described is None else f"{described.training}; {described.data}"
        seeds = ", ".join(map(str, group.seeds))
        auc, logloss = _changes(group.change)
        records.append(Record((words, seeds, _number(group.auc), auc, _number(group.logloss), logloss)))
    console.print()
    print_table(console, heads, records)
    say(
        console,
        "\nMeans over seeds. Changes are from the first line over the seeds that both have on the same rows; their intervals include "
        "the spread between seeds.",
    )


def _print_plan(made: "Plan") -> None:
    from rich.filesize import decimal

    from thinktwice.console.terminal import console_here

    console = console_here()
    for run, why in made.kept:
        say(console, f"keep    {run.name}: {', '.join(why)}")
    for removal in made.removals:
        run = removal.run
        rows = f", with {removal.quarantined:,} quarantined rows" if removal.quarantined else ""
        say(console, f"remove  {run.name}: {run.verdict.partition(':')[0]}, {decimal(removal.size)}{rows}")
    if made.tasks and not made.removals:
        say(console, f"remove  outputs of runs that are no longer listed: {decimal(made.size)}")


def _changes(change: "Change | None") -> tuple[str, str]:
    if change is None:
        return "", ""
    found = []
    for interval in (change.auc, change.logloss):
        if interval.value != interval.value:  # nan: one class only
            found.append(NOT_DEFINED)
        elif interval.bounded:
            found.append(f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]")
        else:
            found.append(f"{interval.value:+.4f} [one user]")
    return found[0], found[1]


def _number(value: float | None) -> str:
    return NOT_DEFINED if value is None else f"{value:.4f}"
