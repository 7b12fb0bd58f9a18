"""``thinktwice experiment``: declare, check, plan, decide and report; the commands that need no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktwice.console.options import WORK, Work
from thinktwice.console.output import Column, Record, print_table, tell
from thinktwice.console.terminal import console_here
from thinktwice.errors import ExperimentError, reason
from thinktwice.printable import printable

if TYPE_CHECKING:
    from thinktwice.experiment.record import DecisionRecord, ExperimentState, Line

# Commands import their dependencies when they run, because every start of the command line loads this file.

app = typer.Typer(help="Declare, check, plan, analyze and report online experiments.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="Experiment file (YAML).")]
RecordsOption = Annotated[
    Path | None,
    typer.Option(
        "--records",
        "--state",
        help="Folder with one subfolder per experiment, each with record.jsonl.",
        show_default="experiments in the folder of --work",
    ),
]

TEMPLATE = """\
version: 1
name: {name}
unit: user_id
salt: {name}          # another salt moves every user: it is another experiment
arms:                 # the first is control; all have equal parts
  - {{name: control, bundle: CONTROL-BUNDLE}}
  - {{name: treatment, bundle: TREATMENT-BUNDLE}}
coverage: 0.0         # share of users that is enrolled; the only field that may change while it runs
ramp:
  - {{coverage: 0.02}}
  - {{coverage: 0.10, after_days: 1}}
  - {{coverage: 1.00, after_days: 1}}
primary: {{metric: ctr, better: increase}}
guardrails:
  - {{metric: error_rate, worse: increase, margin: 0.001}}
  - {{metric: latency_p99, worse: increase, margin: 0.1, relative: true}}
horizon: {{days: 14, looks: 14}}
minimum: {{days: 7, units: 1000}}
alpha: 0.05
"""


@app.command("new")
def new_file(
    name: Annotated[str, typer.Argument(help="Name of the experiment: a-z, 0-9 and '-'.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default NAME.yaml.", show_default=False)] = None,
) -> None:
    """Write a template of an experiment file."""
    from thinktwice.experiment.file import parse_experiment
    from thinktwice.files import atomic_file

    path = out or Path(f"{name}.yaml")
    text = TEMPLATE.format(name=name)
    parse_experiment(text, f"experiment {name!r}")
    if path.exists():
        raise ExperimentError(f"{path} exists already: choose another name, or remove it")
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(str(path))


@app.command("check")
def check_file(
    file: FileArgument,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Other experiments, running or finished; can be repeated.")
    ] = None,
    running: Annotated[
        Path | None,
        typer.Option(help="The file of the running version: only the coverage may differ.", show_default=False),
    ] = None,
) -> None:
    """Check a file alone, against other experiments, and against the running version. Prints all problems; the exit status is 1 if there are any."""
    from thinktwice.experiment.changes import conflicts, forbidden_changes
    from thinktwice.experiment.file import load_experiment

    experiment = load_experiment(file)
    problems = conflicts([experiment, *map(load_experiment, beside or ())])
    if running is not None:
        problems += forbidden_changes(load_experiment(running), experiment)
    if problems:
        raise ExperimentError(f"{file}: " + "; ".join(problems))
    tell(
        f"{file}: {experiment.name}, {len(experiment.arms)} arms, coverage {experiment.coverage:.2%}, {experiment.test.replace('_', ' ')}"
    )


@app.command("assign")
def assign_units(
    file: FileArgument,
    units: Annotated[list[str], typer.Argument(help="Ids of units (users).")],
) -> None:
    """Print arm, bucket and enrollment of units, as assigned by the gateway."""
    from thinktwice.experiment.assignment import assign, layout_of
    from thinktwice.experiment.file import load_experiment

    layout = layout_of([load_experiment(file)])
    for unit in units:
        assignment = assign(layout, unit)
        bucket = "–" if assignment.bucket is None else str(assignment.bucket)
        typer.echo(
            f"{printable(unit)}\t{assignment.arm}\t{bucket}\t{'enrolled' if assignment.enrolled else 'not enrolled'}\t{assignment.reason}"
        )


@app.command("plan")
def plan_file(
    file: FileArgument,
    log: Annotated[Path, typer.Option(help="Parquet file with impressions of the past weeks.")],
    effect: Annotated[
        float | None,
        typer.Option(
            help="Relative effect to detect, e.g. 0.02 for 2 %: prints the number of days needed.", show_default=False
        ),
    ] = None,
    power: Annotated[float, typer.Option(min=0.01, max=0.999, help="Probability of detecting the effect.")] = 0.8,
    unit: Annotated[str, typer.Option(help="Column of the unit.")] = "user_id",
    time: Annotated[str, typer.Option(help="Column of the time.")] = "event_time",
    label: Annotated[str, typer.Option(help="Column of the click, 0 or 1.")] = "label",
) -> None:
    """Print the smallest detectable effect after each number of days, estimated from a log of the past weeks."""
    from thinktwice.experiment.file import load_experiment
    from thinktwice.experiment.planning import plan_experiment

    sample_plan = plan_experiment(
        load_experiment(file), log, unit=unit, time=time, label=label, power=power, relative_effect=effect
    )
    tell(
        f"{sample_plan.metric}, {sample_plan.method.replace('_', ' ')}: {sample_plan.inflation:.2f} times the units of a fixed horizon"
    )
    if sample_plan.variance_reduction:
        tell(f"the pre-period removes {sample_plan.variance_reduction:.0%} of the variance")
    names = ("days", "units an arm", "smallest effect found", "relative", *(() if effect is None else ("power",)))
    records = []
    for line in sample_plan.lines:
        relative = "–" if line.relative is None else f"{line.relative:.2%}"
        power_shown = () if line.power is None else (f"{line.power:.1%}",)
        found_effect = f"{line.minimum_detectable:.6f}"
        records.append(Record((str(line.days), f"{line.units_per_arm:,}", found_effect, relative, *power_shown)))
    print_table(console_here(), [Column(name) for name in names], records)
    if effect is not None:
        days = sample_plan.days_needed
        enough = (
            f"{days} days find {effect:.2%}"
            if days
            else f"{sample_plan.lines[-1].days} days, the length of the log, do not find {effect:.2%}"
        )
        tell(f"{enough} with a power of {power:.0%}")


@app.command("decide")
def decide_experiment(
    file: FileArgument,
    evidence: Annotated[Path, typer.Option(help="Evidence for this look (JSON file written by the log join).")],
    records: RecordsOption = None,
    work: Work = WORK,
) -> None:
    """Make a decision on new evidence, append it to the record, and print it with its reasons."""
    from pydantic import ValidationError

    from thinktwice.experiment.evidence import Evidence
    from thinktwice.experiment.file import load_experiment
    from thinktwice.experiment.record import RECORD, append_decision

    experiment = load_experiment(file)
    try:
        collected = Evidence.model_validate_json(evidence.read_bytes())
    except ValidationError as error:
        raise ExperimentError(
            f"{evidence} is not an evidence file ({reason(error)}): collect the evidence with `thinktwice experiment collect`"
        ) from None
    _print_decision(append_decision(_folder(records, work) / experiment.name / RECORD, experiment, collected))


@app.command("status")
def show_status(
    name: Annotated[str, typer.Argument(help="Name of the experiment.")],
    records: RecordsOption = None,
    work: Work = WORK,
) -> None:
    """Print where an experiment stands, and its last decision."""
    from thinktwice.experiment.record import decisions_of, state_of

    lines = _lines(name, _folder(records, work))
    state = state_of(lines)
    if state.started is not None:
        tell(_standing(state))
    if decisions := decisions_of(lines):
        _print_decision(decisions[-1])


@app.command("list")
def list_experiments(records: RecordsOption = None, work: Work = WORK) -> None:
    """List experiments with a record and their last decision."""
    from thinktwice.experiment.record import RECORD, decisions_of, state_of

    folder = _folder(records, work)
    names = sorted(path.parent.name for path in folder.glob(f"*/{RECORD}"))
    if not names:
        tell(f"no experiment has a record in {folder}")
    for name in names:
        lines = _lines(name, folder)
        state, decisions = state_of(lines), decisions_of(lines)
        days = f"{decisions[-1].evidence.days:.1f} days" if decisions else "no look yet"
        shown = (decisions[-1].verdict.decision.action, _left(decisions[-1])) if decisions else ("–", "–")
        typer.echo(f"{printable(name)}\t{days}\t{state.file.coverage:.2%}\t{shown[0]}\t{shown[1]}\t{_phase(state)}")


@app.command("report")
def write_report_file(
    name: Annotated[str, typer.Argument(help="Name of the experiment.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="JSON file to write.", show_default=False)] = None,
    html_out: Annotated[Path | None, typer.Option("--html", help="HTML page to write.", show_default=False)] = None,
    records: RecordsOption = None,
    work: Work = WORK,
) -> None:
    """Write a report: effects with intervals, guardrails, checks and slices over time, as JSON or as one HTML file."""
    from thinktwice.experiment.report import report_of, write_report
    from thinktwice.experiment.report_page import render_report
    from thinktwice.files import atomic_file

    if json_out is None and html_out is None:
        raise ExperimentError("nothing to write: set --json, --html or both")
    report = report_of(_records(name, _folder(records, work)))
    if json_out is not None:
        write_report(report, json_out)
        typer.echo(str(json_out))
    if html_out is not None:
        with atomic_file(html_out) as temporary:
            temporary.write_text(render_report(report), encoding="utf-8")
        typer.echo(str(html_out))


@app.command("replay")
def replay_record(
    name: Annotated[str, typer.Argument(help="Name of the experiment.")],
    records: RecordsOption = None,
    work: Work = WORK,
) -> None:
    """Recompute all decisions of the record. The exit status is 1 if one differs."""
    from thinktwice.experiment.record import replay

    recorded = _records(name, _folder(records, work))
    for number, (before, again) in enumerate(replay(recorded), start=1):
        if before != again:
            raise ExperimentError(
                f"line {number} of {name} says {before.action} ({before.status}); now it is {again.action} ({again.status}): restore the record from a backup, or decide with the version that wrote it"
            )
    tell(f"{name}: {len(recorded)} decisions, all the same")


def _folder(records: Path | None, work: Path) -> Path:
    return work / "experiments" if records is None else records


def _lines(name: str, folder: Path) -> tuple[Line, ...]:
    from thinktwice.experiment.record import RECORD, read_lines

    lines = read_lines(folder / name / RECORD)
    if not lines:
        raise ExperimentError(
            f"no record of the experiment {name!r} in {folder}: `thinktwice experiment list` lists them"
        )
    return lines


def _records(name: str, folder: Path) -> tuple[DecisionRecord, ...]:
    from thinktwice.experiment.record import decisions_of

    return decisions_of(_lines(name, folder))


def _phase(state: ExperimentState) -> str:
    if state.ended is not None:
        return {"promote": "promoted", "roll_back": "rolled back", "stop": "stopped"}[state.ended]
    return "running" if state.started is not None else "external"


def _standing(state: ExperimentState) -> str:
    coverage = f"coverage {state.file.coverage:.2%}"
    pending = "" if state.pending is None else ", a decision is not applied yet: decide or `ramp` applies it"
    return f"{state.file.name}: {_phase(state)} since {state.started:%Y-%m-%d %H:%M:%S} UTC, {coverage}{pending}"


def _left(record: DecisionRecord) -> str:
    from thinktwice.experiment.remaining import standing

    units = [arm.units for arm in record.evidence.arms]
    return standing(record.file, record.verdict.decision.status, record.evidence.days, units)


def _print_decision(record: DecisionRecord) -> None:
    decision = record.verdict.decision
    action = decision.action.replace("_", " ")
    if decision.arm:
        action += f" {decision.arm}"
    if decision.coverage is not None:
        action += f" to {decision.coverage:.2%}"
    tell(f"{printable(record.file.name)}: {printable(action)} ({_left(record)})")
    for why in decision.reasons:
        tell(printable(why), indent=2)
