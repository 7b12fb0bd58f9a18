"""`thinktwice pipeline submit`, `schedule` and `upload`: the pipelines in Kubeflow Pipelines."""

# Annotations stay real objects here: typer reads them.
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from components.choices import Profile
from pipelines.choices import LogPipelineName
from pipelines.options import (
    ExperimentName,
    KubeflowOptions,
    LogPipelineOption,
    NodeOptions,
    PipelineOption,
    RunOptions,
    ServiceAccount,
    Source,
    WindowDays,
    arguments_of,
    nodes_of,
)
from thinktwice.console.groups import grouped
from thinktwice.console.options import Until
from thinktwice.console.output import tell
from thinktwice.errors import PipelineError, StorageError

if TYPE_CHECKING:
    from pipelines.arguments import RunArguments
    from pipelines.compile import Compiled
    from pipelines.kubeflow import Parameters

ProfileOption = Annotated[Profile, typer.Option(help="Where the tasks run; every one but local.")]


@dataclass(frozen=True)
class ScheduledOptions(RunOptions):
    """Those of a run, for a log that grows."""

    source: Source = "log"


@grouped
def submit(
    kubeflow_options: KubeflowOptions,
    options: RunOptions,
    node_options: NodeOptions,
    pipeline: LogPipelineOption = "training",
    until: Until = "",
    window_days: WindowDays = 0,
    profile: ProfileOption = "gpu-single",
    experiment: ExperimentName = "",
    service_account: ServiceAccount = "",
) -> None:
    """Start a run of a pipeline in Kubeflow Pipelines, and print the address of its page."""
    from components.step import IMAGE
    from pipelines.compile import compiled
    from pipelines.kubeflow import connect, stamped

    arguments = arguments_of(options, until)
    parameters = _parameters(arguments, profile, pipeline, window_days, _data_version, _continue_version)
    nodes = nodes_of(node_options)
    # A server that cannot be reached is said before the seconds that compiling takes.
    with (
        connect(kubeflow_options.host, kubeflow_options.namespace) as kubeflow,
        compiled(profile, image=node_options.image or IMAGE, pipeline=pipeline, nodes=nodes) as found,
    ):
        given = _given(parameters, found)
        version = kubeflow.upload(found)
        name = f"{options.source} {options.recipe if pipeline == 'training' else pipeline}"
        page = kubeflow.submit(version, experiment or found.name, stamped(name), given, service_account)
    tell(f"version {version.name}{' (new)' if version.created else ''}")
    typer.echo(page)


@grouped
def schedule(
    kubeflow_options: KubeflowOptions,
    options: ScheduledOptions,
    node_options: NodeOptions,
    cron: Annotated[
        str,
        typer.Option(
            help="When to run, in the time zone of the cluster: minute, hour, day, month, weekday, e.g. '0 3 * * *'.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            help="Name of the schedule; one of this name in the experiment is replaced.",
            show_default="the pipeline's name",
        ),
    ] = "",
    pipeline: LogPipelineOption = "training",
    window_days: WindowDays = 0,
    profile: ProfileOption = "gpu-single",
    experiment: ExperimentName = "",
    service_account: ServiceAccount = "",
) -> None:
    """Run a pipeline again and again: a recurring run that reads the log until the time it is scheduled for."""
    from components.step import IMAGE
    from pipelines.compile import compiled
    from pipelines.kubeflow import checked_cron, connect

    times = checked_cron(cron)
    # The log needs a clock; which time is checked does not matter.
    arguments = arguments_of(options, "9999-01-01")
    # Every cut-off is a cache key of its own, and every run continues from what is then in the bundle's place.
    parameters = _parameters(arguments, profile, pipeline, window_days, lambda _: "", lambda _: "")
    nodes = nodes_of(node_options)
    with (
        connect(kubeflow_options.host, kubeflow_options.namespace) as kubeflow,
        compiled(profile, image=node_options.image or IMAGE, pipeline=pipeline, nodes=nodes, scheduled=True) as found,
    ):
        given = {key: value for key, value in _given(parameters, found).items() if key != "until"}
        version = kubeflow.upload(found)
        name = name or found.name
        made = kubeflow.schedule(version, experiment or found.name, name, times, given, service_account)
    tell(f"version {version.name}{' (new)' if version.created else ''}")
    tell(f"schedule {name} {made.change}: {times}, reading the log until the scheduled time")
    typer.echo(made.recurring_run_id)


@grouped
def upload(
    kubeflow_options: KubeflowOptions,
    node_options: NodeOptions,
    pipeline: PipelineOption = "training",
    profile: ProfileOption = "gpu-single",
) -> None:
    """Upload a version of a pipeline to Kubeflow Pipelines, to start it from the UI; a version that is there is left as it is."""
    from components.step import IMAGE
    from pipelines.compile import compiled
    from pipelines.kubeflow import connect

    nodes = nodes_of(node_options)
    with (
        connect(kubeflow_options.host, kubeflow_options.namespace) as kubeflow,
        compiled(profile, image=node_options.image or IMAGE, nodes=nodes, pipeline=pipeline) as found,
    ):
        version = kubeflow.upload(found)
    tell(f"version {version.name} {'uploaded' if version.created else 'is there already'}")
    typer.echo(f"{kubeflow.host}/#/pipelines/details/{version.pipeline_id}/version/{version.version_id}")


def _parameters(
    arguments: "RunArguments",
    profile: Profile,
    pipeline: LogPipelineName,
    window_days: int,
    data_version: "Callable[[RunArguments], str]",
    continue_version: "Callable[[RunArguments], str]",
) -> "Parameters":
    """The parameters of a run in a cluster: the place of the champion and the meaning of deployment are the profile's.

    Raises:
        PipelineError: an option belongs to another pipeline.
    """
    from pipelines.check import check_for_cluster
    from pipelines.versions import code_version

    if pipeline == "training" and window_days:
        raise PipelineError("--window-days belongs to --pipeline features: leave it out")
    if pipeline == "features":
        _refuse_training(arguments)
    if note := check_for_cluster(arguments, profile):
        tell(note)
    found = arguments.parameters(code_version(), data_version(arguments), continue_version(arguments))
    return {**{name: value for name, value in found.items() if name != "target"}, "window_days": window_days}


def _refuse_training(arguments: "RunArguments") -> None:
    """Raise PipelineError if an option of the training is set: the pipeline features would not read it."""
    from pipelines.arguments import RunArguments

    log = {"source", "source_path", "schema_path", "limit", "since", "until", "seed"}
    plain = RunArguments.model_validate({}).model_dump()
    odd = [name for name, value in arguments.model_dump().items() if name not in log and value != plain[name]]
    if odd:
        raise PipelineError(f"--pipeline features trains no model, so it has no {', '.join(odd)}: leave the option out")


def _given(parameters: "Parameters", pipeline: "Compiled") -> "dict[str, str | int | float]":
    """The parameters that the pipeline has, checked."""
    from pipelines.kubeflow import check_parameters

    given = {name: value for name, value in parameters.items() if name in pipeline.parameters}
    check_parameters(given)
    return given


def _continue_version(arguments: "RunArguments") -> str:
    """The hash of the bundle that training continues; "" where this machine does not see it."""
    from thinktwice.release.warm_start import bundle_version

    try:
        return bundle_version(arguments.continue_from) if arguments.continue_from else ""
    except StorageError:
        return ""


def _data_version(arguments: "RunArguments") -> str:
    """The version of the log as far as this machine sees it; otherwise one that was never used, so that the log is read again."""
    from pipelines.versions import data_version, read_files

    try:
        return data_version(*read_files(arguments.source, arguments.source_path, arguments.schema_path))
    except StorageError:
        return f"unseen-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
