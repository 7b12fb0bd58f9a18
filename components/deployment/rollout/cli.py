"""The commands ``rollout canary | promote | rollback | status`` and, for experiments, ``start | apply | stop``: versions in a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from thinktwice.console.options import WORK, Work
from thinktwice.console.output import tell
from thinktwice.printable import printable

if TYPE_CHECKING:
    from components.deployment.rollout.target import Session

app = typer.Typer(
    no_args_is_help=True,
    help="Roll a model version out in a Kubernetes cluster: canary, promotion, roll-back.",
)
# Commands import their dependencies when they run, because every start of the command line loads this file.

Service = Annotated[
    str, typer.Option(help="Name of the InferenceService; of SERVICE-control and SERVICE-treatment with arms.")
]
Namespace = Annotated[str, typer.Option(help="Namespace of the service.", show_default="of KUBECONFIG, or of the pod")]
FormOption = Annotated[
    Literal["auto", "gateway", "knative", "standard"],
    typer.Option(
        help="How requests are shared: gateway keeps each user in one arm; knative (canaryTrafficPercent) and standard (spec.canary) draw by "
        "request."
    ),
]
Wait = Annotated[float, typer.Option(min=1, help="Seconds until pods that are not ready have failed.")]
TakeOver = Annotated[
    bool,
    typer.Option("--take-over", help="Change fields that belong to another field manager, e.g. a GitOps controller."),
]
RequestFile = Annotated[
    Path | None,
    typer.Option("--request", help="Body of the test request (JSON).", show_default="one row without features"),
]


@app.command()
def canary(
    uri: Annotated[str, typer.Argument(help="storageUri of the version, as `thinktwice bundle push` prints it.")],
    percent: Annotated[
        int, typer.Option(min=1, max=100, help="Share of the requests; of the users with --form gateway.")
    ] = 10,
    form: FormOption = "auto",
    request: RequestFile = None,
    service: Service = "ctr",
    namespace: Namespace = "",
    wait: Wait = 600.0,
    take_over: TakeOver = False,
) -> None:
    """Start a version beside the stable one, test it, and give it a share. Again: complete an interrupted call, or change the share.

    A version that does not become ready, or does not score, is removed again, and the reason is shown.
    """
    from components.deployment.rollout.objects import version_at
    from components.deployment.rollout.run import canary as start

    start(_session(service, namespace, wait, take_over, request), version_at(uri), percent, form)


@app.command()
def promote(
    form: FormOption = "auto",
    request: RequestFile = None,
    service: Service = "ctr",
    namespace: Namespace = "",
    wait: Wait = 600.0,
    take_over: TakeOver = False,
) -> None:
    """Make the canary the stable version and remove what it needed. Again: complete an interrupted call."""
    from components.deployment.rollout.run import promote as make_stable

    make_stable(_session(service, namespace, wait, take_over, request), form)


@app.command()
def rollback(
    form: FormOption = "auto",
    request: RequestFile = None,
    service: Service = "ctr",
    namespace: Namespace = "",
    wait: Wait = 600.0,
    take_over: TakeOver = False,
) -> None:
    """Take back the canary; without one, restore the version before the last promotion. Again: complete an interrupted call."""
    from components.deployment.rollout.run import roll_back

    roll_back(_session(service, namespace, wait, take_over, request), form)


NameArgument = Annotated[str, typer.Argument(help="Name of the experiment.")]
RecordsOption = Annotated[
    Path | None,
    typer.Option("--records", help="Folder of the records.", show_default="experiments in the folder of --work"),
]


@app.command()
def start(
    file: Annotated[Path, typer.Argument(help="Experiment file (YAML).")],
    arm: Annotated[
        list[str],
        typer.Option(
            help="NAME=URI: the storageUri of an arm's version; for every arm but control, which is what is served."
        ),
    ],
    records: RecordsOption = None,
    service: Service = "ctr",
    namespace: Namespace = "",
    wait: Wait = 600.0,
    take_over: TakeOver = False,
    work: Work = WORK,
) -> None:
    """Start an experiment behind the gateway of the cluster: its arms, a test request to each, then the routes."""
    from components.deployment.rollout.experiments import ClusterRollout, versions_of_arms
    from thinktwice.experiment.file import load_experiment
    from thinktwice.release.rollout import start_experiment

    experiment, session = load_experiment(file), _session(service, namespace, wait, take_over, None)
    target = ClusterRollout(session, versions_of_arms(session, experiment, arm))
    started = start_experiment(_records(records, work), experiment, target)
    tell(f"{started.file.name}: started, coverage {started.file.coverage:.2%}")


@app.command()
def apply(
    name: NameArgument,
    records: RecordsOption = None,
    service: Service = "ctr",
    namespace: Namespace = "",
    wait: Wait = 600.0,
    take_over: TakeOver = False,
    work: Work = WORK,
) -> None:
    """Carry out the last decision of an experiment in the cluster: ramp, promote or roll back. Does nothing if that is done already."""
    from components.deployment.rollout.experiments import ClusterRollout
    from thinktwice.release.rollout import apply_pending

    target = ClusterRollout(_session(service, namespace, wait, take_over, None))
    change = apply_pending(_records(records, work), name, target)
    done = (
        "nothing to apply" if change is None else f"{change.effect.replace('_', ' ')}, coverage {change.coverage:.2%}"
    )
    tell(f"{printable(name)}: {done}")


@app.command()
def stop(
    name: NameArgument,
    why: Annotated[str, typer.Option(help="Reason, for the record.", show_default=False)] = "",
    records: RecordsOption = None,
    service: Service = "ctr",
    namespace: Namespace = "",
    wait: Wait = 600.0,
    take_over: TakeOver = False,
    work: Work = WORK,
) -> None:
    """Give everybody control and end an experiment of the cluster."""
    from components.deployment.rollout.experiments import ClusterRollout
    from thinktwice.release.rollout import stop_experiment

    target = ClusterRollout(_session(service, namespace, wait, take_over, None))
    stop_experiment(_records(records, work), name, target, why)
    tell(f"{printable(name)}: everybody gets control")


@app.command()
def status(form: FormOption = "auto", service: Service = "ctr", namespace: Namespace = "") -> None:
    """Show the versions, their shares, and an action that was not finished."""
    from components.deployment.rollout.run import completes
    from components.deployment.rollout.run import status as read

    found = read(_session(service, namespace, 60.0, False, None), form)
    live, state = found.live, found.state
    shown = live.canary or (state.canary if state is not None else None)
    percent = live.percent or (state.percent if state is not None and shown is not None else 0)
    tell(f"form: {found.form}")
    tell(f"stable: {printable(live.stable.name)} ({printable(live.stable.uri)})")
    if shown is not None:
        tell(f"canary: {printable(shown.name)} ({printable(shown.uri)}), {percent} %")
    if state is not None and state.experiment is not None and state.experiment.name != "canary":
        tell(f"experiment: {state.experiment.name}, coverage {state.experiment.coverage:.2%}")
    if state is not None and state.previous is not None:
        tell(f"before the last promotion: {printable(state.previous.name)}")
    if state is not None and state.action:
        tell(f"not finished: {state.action}; {completes(state)}")


def _records(records: Path | None, work: Path) -> Path:
    return work / "experiments" if records is None else records


def _session(service: str, namespace: str, wait: float, take_over: bool, request: Path | None) -> Session:
    from components.deployment.rollout.connect import open_session
    from components.deployment.rollout.waiting import Waiting

    return open_session(service, namespace, Waiting(limit_s=wait), take_over=take_over, request=request, tell=tell)
