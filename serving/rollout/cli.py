"""The commands ``experiment start | serve | collect | ramp | stop | apply``: the roll-out of experiments on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from thinktwice.console.options import WORK, State, Work, state_folder
from thinktwice.console.output import say, tell
from thinktwice.console.stop import on_stop
from thinktwice.console.terminal import console_here
from thinktwice.printable import printable

if TYPE_CHECKING:
    from thinktwice.experiment.file import ExperimentFile
    from thinktwice.release.rollout import Rollout
    from thinktwice.release.rollout_local import LocalRollout

# Commands import their dependencies when they run, because every start of the command line loads this file.

NameArgument = Annotated[str, typer.Argument(help="Name of the experiment.")]
RecordsOption = Annotated[
    Path | None,
    typer.Option("--records", help="Folder of the records.", show_default="experiments in the folder of --work"),
]
KServeOption = Annotated[
    Path | None,
    typer.Option(
        "--kserve", help="Render the files for KServe into this folder instead of serving here.", show_default=False
    ),
]
WhyOption = Annotated[str, typer.Option(help="Reason, for the record.", show_default=False)]
READY = "ready"  # first word of the line that `serve` prints when the gateway answers
ROLLOUT = "rollout"  # folder below the state folder


def start(
    file: Annotated[Path, typer.Argument(help="Experiment file (YAML).")],
    records: RecordsOption = None,
    kserve: KServeOption = None,
    storage: Annotated[
        str,
        typer.Option(
            help="With --kserve: URI of a version's folder, e.g. s3://models/ctr/{model_version}/, as `pipeline upload` writes it.",
            show_default=False,
        ),
    ] = "",
    state: State = None,
    work: Work = WORK,
) -> None:
    """Start an experiment with its coverage, or that of the first step of its ramp. Running `start` again completes an interrupted start.

    `thinktwice experiment serve` runs its servers; a process that runs already takes the new arms.
    """
    from thinktwice.experiment.changes import check_together
    from thinktwice.experiment.file import load_experiment
    from thinktwice.release.rollout import known_experiments, start_experiment

    experiment, folder = load_experiment(file), _records(records, work)
    check_together([*(known for known in known_experiments(folder) if known.name != experiment.name), experiment])
    target = (
        _target(state, work) if kserve is None else _rendered(kserve, storage, state_folder(state, work), experiment)
    )
    started = start_experiment(folder, experiment, target)
    tell(f"{started.file.name}: started, coverage {started.file.coverage:.2%}")


def serve(
    state: State = None,
    work: Work = WORK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway on 127.0.0.1.")] = 8080,
    server: Annotated[
        Literal["torchserve", "kserve"], typer.Option(help="Server of each arm; both give the same answers.")
    ] = "torchserve",
) -> None:
    """Run a server for every arm of the running experiments, and the gateway in front of them, until Ctrl-C.

    Every enrolled request is logged. After a promotion the new champion takes over as control without a restart.
    """
    from serving.config import load_config
    from serving.rollout.servers import ArmServers
    from thinktwice.errors import ExperimentError

    _target(state, work).serve_champion()
    folder = _folder(state, work)
    console = console_here(stderr=True)
    on_stop("servers and gateway stopped")
    with (
        console.status("starting") as status,
        ArmServers(folder, port, load_config(), kind=server, progress=status.update) as servers,
    ):
        status.stop()
        typer.echo(f"{READY} {servers.url}/v1/models/ctr:predict")
        say(console, f"logs in {servers.folder}, stop with Ctrl-C")
        while True:
            servers.check()
            try:
                if servers.follow():
                    say(console, f"arms: {', '.join(servers.ports())}")
            except ExperimentError as error:
                say(console, f"the old routes stay live: {error}")
            time.sleep(0.2)


def ramp(
    name: NameArgument,
    coverage: Annotated[float, typer.Option(min=0.0001, max=1.0, help="New share of enrolled users, e.g. 0.1.")],
    why: WhyOption = "",
    records: RecordsOption = None,
    kserve: KServeOption = None,
    state: State = None,
    work: Work = WORK,
) -> None:
    """Raise the coverage by hand; nobody enrolled changes arm."""
    from thinktwice.release.rollout import change_coverage

    change = change_coverage(_records(records, work), name, coverage, _any_target(kserve, state, work), why)
    tell(f"{printable(name)}: coverage {change.coverage:.2%}")


def stop(
    name: NameArgument,
    why: WhyOption = "",
    records: RecordsOption = None,
    kserve: KServeOption = None,
    state: State = None,
    work: Work = WORK,
) -> None:
    """Roll back: give everybody control within one reload of the gateway, and end the experiment."""
    from thinktwice.release.rollout import stop_experiment

    begin = time.monotonic()
    stop_experiment(_records(records, work), name, _any_target(kserve, state, work), why)
    tell(f"{printable(name)}: everybody gets control (after {time.monotonic() - begin:.1f} s)")


def apply(
    name: NameArgument,
    records: RecordsOption = None,
    kserve: KServeOption = None,
    state: State = None,
    work: Work = WORK,
) -> None:
    """Carry out the last decision: ramp, promote or roll back. Does nothing if that is done already."""
    from thinktwice.release.rollout import apply_pending

    change = apply_pending(_records(records, work), name, _any_target(kserve, state, work))
    if change is None:
        tell(f"{printable(name)}: nothing to apply")
        return
    arm = f" {change.arm}" if change.arm else ""
    tell(f"{printable(name)}: {change.effect.replace('_', ' ')}{arm}, coverage {change.coverage:.2%}")


def collect(
    name: NameArgument,
    events: Annotated[Path, typer.Option(help="Event log of the feedback service (folder).")],
    out: Annotated[Path, typer.Option(help="Evidence file (JSON) to write.")],
    window: Annotated[
        float, typer.Option(min=0.001, help="Seconds after an exposure within which a click counts.")
    ] = 86_400.0,
    settle: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds until every log has the rows of a request; later ones are left to the next look."
        ),
    ] = 120.0,
    records: RecordsOption = None,
    state: State = None,
    work: Work = WORK,
) -> None:
    """Join what is new in the logs of the local roll-out since the last look, and write the evidence for `experiment decide`."""
    from datetime import timedelta

    from serving.rollout.collect import collect as collect_evidence
    from serving.rollout.collect import now, write_clicks
    from thinktwice.errors import ExperimentError
    from thinktwice.experiment.exposed import EXPOSED
    from thinktwice.experiment.outcomes import Window
    from thinktwice.experiment.record import RECORD, read_lines, state_of
    from thinktwice.experiment.report import damaged_remark
    from thinktwice.files import atomic_file

    place = _records(records, work) / name
    lines = read_lines(place / RECORD)
    if not lines:
        raise ExperimentError(f"{name} was not started: `thinktwice experiment start` does")
    at = now() - timedelta(seconds=settle)
    evidence = collect_evidence(
        state_of(lines),
        _folder(state, work),
        write_clicks(events, place / "clicks"),
        place / "look",
        at=at,
        window=Window(seconds=window),
        exposed=place / EXPOSED,
    )
    with atomic_file(out) as temporary:
        temporary.write_text(evidence.model_dump_json(), encoding="utf-8")
    if evidence.damaged_files:
        tell(damaged_remark(evidence.damaged_files))
    typer.echo(str(out))


def _any_target(kserve: Path | None, state: Path | None, work: Path) -> Rollout:
    from thinktwice.release.rollout_kserve import KServeRollout

    return _target(state, work) if kserve is None else KServeRollout.opened(kserve)


def _rendered(folder: Path, storage: str, state_dir: Path, experiment: ExperimentFile) -> Rollout:
    from thinktwice.errors import ExperimentError
    from thinktwice.release.challenger import version_named
    from thinktwice.release.rollout import ServedArm
    from thinktwice.release.rollout_kserve import KServeRollout, KServeSettings

    if "{model_version}" not in storage:
        raise ExperimentError(
            f"--storage {storage!r} does not contain {{model_version}}: give the URI of a version's folder"
        )
    named = {arm.bundle: version_named(state_dir, arm.bundle) for arm in experiment.arms}
    versions = {
        bundle: ServedArm(
            name="",
            model_version=version.model_version,
            bundle_hash=version.bundle_hash,
            where=storage.format(model_version=version.model_version),
        )
        for bundle, version in named.items()
    }
    return KServeRollout(folder, KServeSettings(storage=storage), versions)


def _target(state: Path | None, work: Path) -> LocalRollout:
    from serving.rollout.servers import reload_gateway
    from thinktwice.release.rollout_local import LocalRollout

    folder = _folder(state, work)
    return LocalRollout(state_folder(state, work), folder, lambda: reload_gateway(folder))


def _folder(state: Path | None, work: Path) -> Path:
    return state_folder(state, work) / ROLLOUT


def _records(records: Path | None, work: Path) -> Path:
    return work / "experiments" if records is None else records
