"""`thinktwice pipeline submit`, `schedule` and `upload`: the pipeline in Kubeflow Pipelines."""

# Annotations stay real objects here: typer reads them.
import math
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer

from components.choices import Profile
from pipelines.choices import PipelineName
from pipelines.options import (
    Backbone,
    Challenger,
    Checkpoints,
    ContinueFrom,
    CpuPool,
    ExperimentName,
    GpuPool,
    Host,
    Image,
    Limit,
    MaxCost,
    OnlineStore,
    Paths,
    PlatformOption,
    Pretraining,
    Priority,
    Queue,
    Recipe,
    RedisAddress,
    SchemaFile,
    Seed,
    ServiceAccount,
    Settings,
    Source,
    Split,
    Spot,
    TestDays,
    TestTime,
    UserNamespace,
    nodes_of,
)
from thinktwice.choices import MAX_COST, ChallengerMode, OnlineStoreKind, PretrainingOption, SearchMode
from thinktwice.console.options import Since, Until
from thinktwice.console.output import tell
from thinktwice.errors import PipelineError, StorageError

if TYPE_CHECKING:
    from pipelines.arguments import RunArguments
    from pipelines.kubeflow import Parameters

ProfileOption = Annotated[Profile, typer.Option(help="Where the tasks run; every one but local.")]
EXPERIMENT = "ctr-training"


def submit(
    host: Host,
    source: Source = "ml-1m",
    path: Paths = None,
    schema: SchemaFile = "",
    split: Split = "time",
    test_days: TestDays = 0,
    recipe: Recipe = "default",
    backbone: Backbone = "",
    pretraining: Pretraining = "",
    settings: Settings = None,
    checkpoints: Checkpoints = "",
    continue_from: ContinueFrom = "",
    test_time: TestTime = "lean",
    max_cost: MaxCost = MAX_COST,
    challenger: Challenger = "",
    seed: Seed = 0,
    limit: Limit = 0,
    since: Since = "",
    until: Until = "",
    online_store: OnlineStore = "sqlite",
    redis_address: RedisAddress = "",
    profile: ProfileOption = "gpu-single",
    image: Image = "",
    platform: PlatformOption = "pool",
    gpu_pool: GpuPool = "",
    cpu_pool: CpuPool = "",
    spot: Spot = False,
    queue: Queue = "",
    priority: Priority = "",
    namespace: UserNamespace = "",
    experiment: ExperimentName = EXPERIMENT,
    service_account: ServiceAccount = "",
) -> None:
    """Start a run of the training pipeline in Kubeflow Pipelines, and print the address of its page."""
    from components.step import IMAGE
    from pipelines.compile import compiled
    from pipelines.kubeflow import check_parameters, connect, stamped

    arguments = _arguments(
        source, path, schema, split, test_days, recipe, backbone, pretraining, settings, checkpoints, continue_from, test_time, max_cost, challenger, seed, limit, since, until,
        online_store, redis_address,
    )  # fmt: skip
    parameters = _parameters(arguments, profile, _data_version, _continue_version)
    nodes = nodes_of(platform, gpu_pool, cpu_pool, spot, queue, priority)
    with compiled(profile, image=image or IMAGE, nodes=nodes) as pipeline, connect(host, namespace) as kubeflow:
        given = {name: value for name, value in parameters.items() if name in pipeline.parameters}
        check_parameters(given)
        version = kubeflow.upload(pipeline)
        page = kubeflow.submit(version, experiment, stamped(f"{source} {recipe}"), given, service_account)
    tell(f"version {version.name}{' (new)' if version.created else ''}")
    typer.echo(page)


def schedule(
    host: Host,
    cron: Annotated[
        str,
        typer.Option(
            help="When to run, in the time zone of the cluster: minute, hour, day, month, weekday, e.g. '0 3 * * *'.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str, typer.Option(help="Name of the schedule; one of this name in the experiment is replaced.")
    ] = EXPERIMENT,
    source: Source = "log",
    path: Paths = None,
    schema: SchemaFile = "",
    split: Split = "time",
    test_days: TestDays = 0,
    recipe: Recipe = "default",
    backbone: Backbone = "",
    pretraining: Pretraining = "",
    settings: Settings = None,
    checkpoints: Checkpoints = "",
    continue_from: ContinueFrom = "",
    test_time: TestTime = "lean",
    max_cost: MaxCost = MAX_COST,
    challenger: Challenger = "",
    seed: Seed = 0,
    limit: Limit = 0,
    since: Since = "",
    online_store: OnlineStore = "sqlite",
    redis_address: RedisAddress = "",
    profile: ProfileOption = "gpu-single",
    image: Image = "",
    platform: PlatformOption = "pool",
    gpu_pool: GpuPool = "",
    cpu_pool: CpuPool = "",
    spot: Spot = False,
    queue: Queue = "",
    priority: Priority = "",
    namespace: UserNamespace = "",
    experiment: ExperimentName = EXPERIMENT,
    service_account: ServiceAccount = "",
) -> None:
    """Train again and again: a recurring run that reads the log until the time it is scheduled for."""
    from components.step import IMAGE
    from pipelines.compile import compiled
    from pipelines.kubeflow import check_parameters, checked_cron, connect

    times = checked_cron(cron)
    # The log needs a clock; which time is checked does not matter.
    arguments = _arguments(
        source, path, schema, split, test_days, recipe, backbone, pretraining, settings, checkpoints, continue_from, test_time, max_cost, challenger, seed, limit, since, "9999-01-01",
        online_store, redis_address,
    )  # fmt: skip
    # Every cut-off is a cache key of its own, and every run continues from what is then in the bundle's place.
    parameters = _parameters(arguments, profile, lambda _: "", lambda _: "")
    nodes = nodes_of(platform, gpu_pool, cpu_pool, spot, queue, priority)
    with (
        compiled(profile, image=image or IMAGE, nodes=nodes, scheduled=True) as pipeline,
        connect(host, namespace) as kubeflow,
    ):
        given = {key: value for key, value in parameters.items() if key in pipeline.parameters and key != "until"}
        check_parameters(given)
        version = kubeflow.upload(pipeline)
        made = kubeflow.schedule(version, experiment, name, times, given, service_account)
    tell(f"version {version.name}{' (new)' if version.created else ''}")
    tell(f"schedule {name} {made.change}: {times}, reading the log until the scheduled time")
    typer.echo(made.recurring_run_id)


def upload(
    host: Host,
    pipeline: Annotated[
        PipelineName, typer.Option(help="Pipeline to upload: training, or a look at a running experiment.")
    ] = "training",
    profile: ProfileOption = "gpu-single",
    image: Image = "",
    platform: PlatformOption = "pool",
    gpu_pool: GpuPool = "",
    cpu_pool: CpuPool = "",
    spot: Spot = False,
    queue: Queue = "",
    priority: Priority = "",
    namespace: UserNamespace = "",
) -> None:
    """Upload a version of a pipeline to Kubeflow Pipelines, to start it from the UI; a version that is there is left as it is."""
    from components.step import IMAGE
    from pipelines.compile import compiled
    from pipelines.kubeflow import connect

    nodes = nodes_of(platform, gpu_pool, cpu_pool, spot, queue, priority)
    with (
        compiled(profile, image=image or IMAGE, nodes=nodes, pipeline=pipeline) as found,
        connect(host, namespace) as kubeflow,
    ):
        version = kubeflow.upload(found)
    tell(f"version {version.name} {'uploaded' if version.created else 'is there already'}")
    typer.echo(f"{kubeflow.host}/#/pipelines/details/{version.pipeline_id}/version/{version.version_id}")


def _arguments(
    source: str,
    path: "list[str] | None",
    schema: str,
    split: str,
    test_days: int,
    recipe: str,
    backbone: str,
    pretraining: PretrainingOption,
    settings: "list[str] | None",
    checkpoints: str,
    continue_from: str,
    test_time: SearchMode,
    max_cost: float,
    challenger: ChallengerMode,
    seed: int,
    limit: int,
    since: str,
    until: str,
    online_store: OnlineStoreKind,
    redis_address: str,
) -> "RunArguments":
    from pipelines.arguments import RunArguments
    from pipelines.check import chosen_recipe, chosen_split
    from thinktwice.data.sources.registry import one_path

    if not math.isfinite(max_cost):
        raise PipelineError(f"--max-cost {max_cost:g} is no limit: give a number of at least 1")
    return RunArguments(
        source=source,
        source_path=one_path(source, path or []),
        schema_path=schema,
        limit=limit,
        since=since,
        until=until,
        seed=seed,
        split=chosen_split(split, test_days),
        **chosen_recipe(recipe, backbone, pretraining, settings or []),
        checkpoints=checkpoints,
        continue_from=continue_from,
        test_time_mode=test_time,
        max_cost=max_cost,
        challenger=challenger,
        online_store=online_store,
        redis_address=redis_address,
    )


def _parameters(
    arguments: "RunArguments",
    profile: Profile,
    data_version: "Callable[[RunArguments], str]",
    continue_version: "Callable[[RunArguments], str]",
) -> "Parameters":
    """The parameters of a run in a cluster: the place of the champion and the meaning of deployment are the profile's."""
    from pipelines.check import check_for_cluster
    from pipelines.versions import code_version

    if note := check_for_cluster(arguments, profile):
        tell(note)
    found = arguments.parameters(code_version(), data_version(arguments), continue_version(arguments))
    return {name: value for name, value in found.items() if name != "target"}


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
