"""Options of the commands that run or compile a pipeline: one name, one meaning and one help each."""

# Annotations stay real objects here: typer reads them.
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.choices import Platform
from pipelines.choices import LogPipelineName, PipelineName
from thinktwice.choices import MAX_COST, ChallengerMode, OnlineStoreKind, PretrainingOption, SearchMode
from thinktwice.console.options import Since
from thinktwice.errors import PipelineError, reason

if TYPE_CHECKING:
    from pipelines.arguments import RunArguments
    from pipelines.nodes import Nodes

Source = Annotated[
    str,
    typer.Option(
        help="Where the log comes from: ml-1m, ml-100k, sim, log, parquet or another of `thinktwice data list`."
    ),
]
Paths = Annotated[
    list[str] | None,
    typer.Option(
        "--path",
        help="File or folder of the log, for the sources that read your own copy; for --source log also a pattern or s3://, "
        "and it may repeat.",
        show_default=False,
    ),
]
SchemaFile = Annotated[
    str,
    typer.Option(
        "--schema",
        help="Schema file (YAML) of the log, also at s3://, for --source log or parquet.",
        show_default=False,
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="How rows are split into train, validation and test: time, random (by the seed), column:NAME (a column with the "
        "values train, valid and test), days:N, or dates:2024-03-01,2024-03-08 (begin of validation, of test)."
    ),
]
TestDays = Annotated[
    int,
    typer.Option(
        help="The last N days are test and the N days before them are validation; the same as --split days:N.",
        min=0,
        max=3650,
        show_default=False,
    ),
]
Recipe = Annotated[
    str, typer.Option(help="Training recipe: default, dcnv2, autoint, ml-1m, ml-100k, tiny, or a recipe file (YAML).")
]
Backbone = Annotated[
    str,
    typer.Option(
        help="Architecture of the model: lr, fm, deepfm, dcnv2, autoint, masknet, finalmlp, din, or package.module:Class of "
        "your own.",
        show_default="the recipe's",
    ),
]
Pretraining = Annotated[
    PretrainingOption,
    typer.Option(
        help="Pre-training: none, dgenctr (all fields weigh the same) or hetegenctr (learned weights).",
        show_default="the recipe's",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the recipe, such as finetune.rate=0.002; may repeat.", show_default=False),
]
Checkpoints = Annotated[
    str,
    typer.Option(
        help="Folder or s3://BUCKET/FOLDER for checkpoints of training: a killed run continues from there.",
        show_default="none",
    ),
]
ContinueFrom = Annotated[
    str,
    typer.Option(
        help="Bundle, a folder or s3://BUCKET/FOLDER, whose vocabularies and weights training continues on this log.",
        show_default="train from scratch",
    ),
]
TestTime = Annotated[
    SearchMode,
    typer.Option(
        help="Extra work that may ship if validation proves a gain; lean tries all and ships the best within --max-cost."
    ),
]
MaxCost = Annotated[
    float, typer.Option(help="Limit for lean: measured time of a request relative to the plain model's.", min=1.0)
]
Challenger = Annotated[
    ChallengerMode,
    typer.Option(
        help="Test-time mode of a challenger: the same weights, packaged beside the champion for an experiment, also if validation "
        "proves no gain.",
        show_default="none",
    ),
]
ServingNamespace = Annotated[
    str,
    typer.Option(
        help="Namespace of the cluster of KUBECONFIG, or of the steps, in which the deployed model becomes a canary of the InferenceService ctr.",
        show_default="no canary",
    ),
]
ModelStorage = Annotated[
    str,
    typer.Option(help="s3://BUCKET/FOLDER of versions, to which the canary's model is copied.", show_default=False),
]
CanaryPercent = Annotated[
    int, typer.Option(help="Share of the canary: of the requests, or of the users.", min=1, max=100)
]
Seed = Annotated[int, typer.Option(help="Seed of the simulator, of a random split and of training.", min=0)]
Limit = Annotated[int, typer.Option(help="Read at most this many rows; 0 reads all.", min=0)]
OnlineStore = Annotated[OnlineStoreKind, typer.Option(help="Store the served features are read from.")]
RedisAddress = Annotated[
    str, typer.Option(help="host:port of the Redis server, for --online-store redis.", show_default=False)
]

Image = Annotated[
    str,
    typer.Option(
        help="Image of the steps in your registry, as images/build_pipeline.sh made it.",
        show_default="the name in components/step.py",
    ),
]
PlatformOption = Annotated[
    Platform,
    typer.Option(
        "--platform",
        help="Labels of the nodes: pool is thinktwice.dev/pool, nvidia that of NVIDIA's feature discovery, eks those of Karpenter.",
    ),
]
GpuPool = Annotated[str, typer.Option(help="Node pool with GPUs; required on gke, eks, aks.", show_default=False)]
CpuPool = Annotated[str, typer.Option(help="Node pool of all other steps, on gke, eks, aks.", show_default="any node")]
NodesFile = Annotated[
    Path | None,
    typer.Option(
        "--nodes",
        help="YAML file with what the node options say, and with affinities; instead of them.",
        show_default=False,
    ),
]
Spot = Annotated[bool, typer.Option("--spot", help="Train on spot nodes, with more retries.")]
Queue = Annotated[str, typer.Option(help="Kueue's LocalQueue for training.", show_default="none")]
Priority = Annotated[str, typer.Option(help="Kueue's WorkloadPriorityClass for training.", show_default="none")]

Host = Annotated[
    str,
    typer.Option(
        help="Address of the API of Kubeflow Pipelines, or of its UI; a token comes from THINKTWICE_KFP_TOKEN.",
        envvar="KF_PIPELINES_ENDPOINT",
        show_default=False,
    ),
]
UserNamespace = Annotated[
    str,
    typer.Option(
        "--namespace", help="Namespace of your profile, where Kubeflow serves several users.", show_default="none"
    ),
]
ExperimentName = Annotated[
    str,
    typer.Option(
        "--experiment", help="Experiment in the UI that the runs belong to.", show_default="the pipeline's name"
    ),
]
ServiceAccount = Annotated[
    str, typer.Option(help="Kubernetes service account of the steps.", show_default="that of the installation")
]


PipelineOption = Annotated[
    PipelineName,
    typer.Option(
        help="training; experiment, a look at a running experiment; or features, which brings served features up to date."
    ),
]
LogPipelineOption = Annotated[
    LogPipelineName,
    typer.Option("--pipeline", help="training, or features, which brings the served features up to date."),
]
WindowDays = Annotated[
    int,
    typer.Option(
        min=0, max=3650, help="Of the pipeline features: write only rows of so many days before the end; 0 writes all."
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """What a run reads and how it trains; the time until which it reads is an option of each command."""

    source: Source = "ml-1m"
    path: Paths = None
    schema: SchemaFile = ""
    split: Split = "time"
    test_days: TestDays = 0
    recipe: Recipe = "default"
    backbone: Backbone = ""
    pretraining: Pretraining = ""
    settings: Settings = None
    checkpoints: Checkpoints = ""
    continue_from: ContinueFrom = ""
    test_time: TestTime = "lean"
    max_cost: MaxCost = MAX_COST
    challenger: Challenger = ""
    serving_namespace: ServingNamespace = ""
    model_storage: ModelStorage = ""
    canary_percent: CanaryPercent = 10
    seed: Seed = 0
    limit: Limit = 0
    since: Since = ""
    online_store: OnlineStore = "sqlite"
    redis_address: RedisAddress = ""


@dataclass(frozen=True)
class NodeOptions:
    """The image of the steps and the nodes that they run on."""

    image: Image = ""
    platform: PlatformOption = "pool"
    gpu_pool: GpuPool = ""
    cpu_pool: CpuPool = ""
    spot: Spot = False
    queue: Queue = ""
    priority: Priority = ""
    nodes: NodesFile = None


@dataclass(frozen=True)
class KubeflowOptions:
    """Where Kubeflow Pipelines is, and for whom."""

    host: Host
    namespace: UserNamespace = ""


def arguments_of(options: RunOptions, until: str, **changes: Any) -> "RunArguments":
    """The arguments of a run; ``changes`` replace single ones.

    Raises:
        PipelineError, DataError: an option is wrong, or two contradict each other.
    """
    from pydantic import ValidationError

    from pipelines.arguments import RunArguments
    from pipelines.check import chosen_recipe, chosen_split
    from thinktwice.data.sources.registry import one_path

    if not math.isfinite(options.max_cost):
        raise PipelineError(f"--max-cost {options.max_cost:g} is no limit: give a number of at least 1")
    values: dict[str, Any] = {
        "source": options.source,
        "source_path": one_path(options.source, options.path or []),
        "schema_path": options.schema,
        "limit": options.limit,
        "since": options.since,
        "until": until,
        "seed": options.seed,
        "split": chosen_split(options.split, options.test_days),
        **chosen_recipe(options.recipe, options.backbone, options.pretraining, options.settings or []),
        "checkpoints": options.checkpoints,
        "continue_from": options.continue_from,
        "test_time_mode": options.test_time,
        "max_cost": options.max_cost,
        "challenger": options.challenger,
        "serving_namespace": options.serving_namespace,
        "model_storage": options.model_storage,
        "canary_percent": options.canary_percent,
        "online_store": options.online_store,
        "redis_address": options.redis_address,
    }
    try:
        return RunArguments.model_validate(values | changes)
    except ValidationError as error:
        raise PipelineError(reason(error)) from error


def nodes_of(options: NodeOptions) -> "Nodes":
    """The node pools that options or a file name.

    Raises:
        PipelineError: they contradict each other.
    """
    from pydantic import ValidationError

    from pipelines.nodes import Nodes, load_nodes

    given = {
        "platform": options.platform,
        "gpu_pool": options.gpu_pool,
        "cpu_pool": options.cpu_pool,
        "spot": options.spot,
        "queue": options.queue,
        "priority": options.priority,
    }
    if options.nodes is not None:
        beside = [name for name, value in given.items() if value != getattr(NodeOptions(), name)]
        if beside:
            raise PipelineError(
                f"--nodes {options.nodes} and --{beside[0].replace('_', '-')} both name nodes: write {beside[0]} into the file"
            )
        return load_nodes(options.nodes)
    try:
        return Nodes.model_validate(given)
    except ValidationError as error:
        raise PipelineError(reason(error)) from error
