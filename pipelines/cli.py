"""`thinktwice pipeline`: run the training pipeline here, or compile it for a cluster."""

# Annotations stay real objects here: typer reads them.
import math
from pathlib import Path
from typing import Annotated

import typer

from components.choices import DeployTarget, Platform, Profile
from pipelines.choices import PipelineName
from thinktwice.choices import MAX_COST, ChallengerMode, OnlineStoreKind, PretrainingOption, SearchMode
from thinktwice.console.options import WORK, Since, State, Until, Work, state_folder
from thinktwice.console.output import tell
from thinktwice.console.stop import NOTHING_HALF_WRITTEN, on_stop
from thinktwice.errors import PipelineError, reason

app = typer.Typer(
    name="pipeline",
    help="Run the training pipeline on this machine, or compile it for a Kubeflow Pipelines cluster.",
    no_args_is_help=True,
)

# Names of the tasks in the output.
TITLES = {
    "ingest": "read the log",
    "validate": "validate it",
    "materialize": "materialize features",
    "build-training-set": "build the training set",
    "pretrain": "pre-train",
    "finetune": "fine-tune from scratch",
    "finetune-2": "fine-tune the pre-trained model",
    "fit-test-time": "fit test-time parameters",
    "evaluate": "evaluate",
    "bless": "compare with the champion",
    "package": "package",
    "deploy": "deploy",
    "challenge": "package the challenger",
}


@app.command()
def run(
    source: Annotated[
        str,
        typer.Option(
            help="Where the log comes from: ml-1m, ml-100k, sim, log, parquet or another of `thinktwice data list`."
        ),
    ] = "ml-1m",
    path: Annotated[
        list[str] | None,
        typer.Option(
            help="File or folder of the log, for the sources that read your own copy; for --source log also a pattern or s3://, "
            "and it may repeat.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        str,
        typer.Option(
            help="Schema file (YAML) of the log, also at s3://, for --source log or parquet.", show_default=False
        ),
    ] = "",
    split: Annotated[
        str,
        typer.Option(
            help="How rows are split into train, validation and test: time, random (by the seed), column:NAME (a column with the "
            "values train, valid and test), days:N, or dates:2024-03-01,2024-03-08 (begin of validation, of test)."
        ),
    ] = "time",
    test_days: Annotated[
        int,
        typer.Option(
            help="The last N days are test and the N days before them are validation; the same as --split days:N.",
            min=0,
            max=3650,
            show_default=False,
        ),
    ] = 0,
    recipe: Annotated[
        str,
        typer.Option(help="Training recipe: default, dcnv2, autoint, ml-1m, ml-100k, tiny, or a recipe file (YAML)."),
    ] = "default",
    backbone: Annotated[
        str,
        typer.Option(
            help="Architecture of the model: lr, fm, deepfm, dcnv2, autoint, masknet, finalmlp, din, or package.module:Class of "
            "your own.",
            show_default="the recipe's",
        ),
    ] = "",
    pretraining: Annotated[
        PretrainingOption,
        typer.Option(
            help="Pre-training: none, dgenctr (all fields weigh the same) or hetegenctr (learned weights).",
            show_default="the recipe's",
        ),
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of the recipe, such as finetune.rate=0.002; may repeat.", show_default=False
        ),
    ] = None,
    checkpoints: Annotated[
        str,
        typer.Option(
            help="Folder or s3://BUCKET/FOLDER for checkpoints of training: a killed run continues from there.",
            show_default="none",
        ),
    ] = "",
    test_time: Annotated[
        SearchMode,
        typer.Option(
            help="Extra work that may ship if validation proves a gain; lean tries all and ships the best within --max-cost."
        ),
    ] = "lean",
    max_cost: Annotated[
        float,
        typer.Option(help="Limit for lean: measured time of a request relative to the plain model's.", min=1.0),
    ] = MAX_COST,
    challenger: Annotated[
        ChallengerMode,
        typer.Option(
            help="Test-time mode of a challenger: the same weights, packaged beside the champion for an experiment, also if validation "
            "proves no gain.",
            show_default="none",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the simulator, of a random split and of training.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="Read at most this many rows; 0 reads all.", min=0)] = 0,
    since: Since = "",
    until: Until = "",
    online_store: Annotated[OnlineStoreKind, typer.Option(help="Store the served features are read from.")] = "sqlite",
    redis_address: Annotated[
        str, typer.Option(help="host:port of the Redis server, for --online-store redis.", show_default=False)
    ] = "",
    target: Annotated[
        DeployTarget,
        typer.Option(
            help="local makes the model ready for `thinktwice serve`; manifest also renders an InferenceService."
        ),
    ] = "local",
    state: State = None,
    work: Work = WORK,
    profile: Annotated[
        Profile, typer.Option(help="Where tasks run; only local runs here, the others are compiled for a cluster.")
    ] = "local",
) -> None:
    """Run the whole pipeline on this machine: read, validate, train, evaluate and deploy if the model is blessed."""
    if profile != "local":
        raise PipelineError(
            f"the profile {profile} needs a cluster: compile it with "
            f"`thinktwice pipeline compile --profile {profile} --out pipeline.yaml` and submit that file"
        )
    if not math.isfinite(max_cost):
        raise PipelineError(f"--max-cost {max_cost:g} is no limit: give a number of at least 1")
    from pipelines.arguments import RunArguments
    from pipelines.check import checkpoints_place, chosen_recipe, chosen_split
    from pipelines.run import run_local
    from pipelines.summary import print_summary
    from thinktwice.console.processes import terminated_like_interrupted
    from thinktwice.console.stages import StageBoard
    from thinktwice.console.terminal import console_here
    from thinktwice.data.sources.registry import one_path

    arguments = RunArguments(
        source=source,
        source_path=one_path(source, path or []),
        schema_path=schema,
        limit=limit,
        since=since,
        until=until,
        seed=seed,
        split=chosen_split(split, test_days),
        **chosen_recipe(recipe, backbone, pretraining, settings or []),
        checkpoints=checkpoints_place(checkpoints),
        test_time_mode=test_time,
        max_cost=max_cost,
        challenger=challenger,
        online_store=online_store,
        redis_address=redis_address,
        target=target,
    )
    console = console_here()
    on_stop(NOTHING_HALF_WRITTEN)
    with terminated_like_interrupted(), StageBoard(console, TITLES) as board:
        result = run_local(arguments, work_dir=work, state_dir=state_folder(state, work), on_event=board.feed)
    print_summary(console, result)


@app.command("compile")
def compile_(
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    profile: Annotated[Profile, typer.Option(help="Where the tasks will run.")] = "gpu-single",
    kubernetes_manifest: Annotated[
        bool,
        typer.Option("--kubernetes-manifest", help="Write Pipeline and PipelineVersion objects for kubectl apply."),
    ] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of those objects.")] = "kubeflow",
    image: Annotated[
        str,
        typer.Option(
            help="Image of the steps in your registry, as images/build_pipeline.sh made it.",
            show_default="the name in components/step.py",
        ),
    ] = "",
    pipeline: Annotated[
        PipelineName, typer.Option(help="Pipeline to compile: training, or a look at a running experiment.")
    ] = "training",
    platform: Annotated[
        Platform,
        typer.Option(
            help="Labels of the nodes: pool is thinktwice.dev/pool, nvidia that of NVIDIA's feature discovery, eks those of Karpenter."
        ),
    ] = "pool",
    gpu_pool: Annotated[
        str, typer.Option(help="Node pool with GPUs; required on gke, eks, aks.", show_default=False)
    ] = "",
    cpu_pool: Annotated[
        str, typer.Option(help="Node pool of all other steps, on gke, eks, aks.", show_default="any node")
    ] = "",
    spot: Annotated[bool, typer.Option("--spot", help="Train on spot nodes, with more retries.")] = False,
    queue: Annotated[str, typer.Option(help="Kueue's LocalQueue for training.", show_default="none")] = "",
    priority: Annotated[
        str, typer.Option(help="Kueue's WorkloadPriorityClass for training.", show_default="none")
    ] = "",
) -> None:
    """Compile a pipeline into a file for a Kubeflow Pipelines cluster."""
    from pydantic import ValidationError

    from components.step import IMAGE
    from pipelines.compile import compile_pipeline
    from pipelines.nodes import Nodes

    try:
        nodes = Nodes(
            platform=platform, gpu_pool=gpu_pool, cpu_pool=cpu_pool, spot=spot, queue=queue, priority=priority
        )
    except ValidationError as error:
        raise PipelineError(reason(error)) from error
    compile_pipeline(
        profile,
        out,
        kubernetes_manifest=kubernetes_manifest,
        namespace=namespace,
        image=image or IMAGE,
        pipeline=pipeline,
        nodes=nodes,
    )
    tell(f"wrote {out}")


def challenger(
    mode: Annotated[ChallengerMode, typer.Option(help="Test-time mode to package.", show_default=False)],
    recipe: Annotated[
        str, typer.Option(help="Recipe of the last run, its name or file, for the settings of the mode.")
    ] = "default",
    state: State = None,
    work: Work = WORK,
) -> None:
    """Package the champion's weights with another test-time mode, for an experiment.

    Uses the models of the last run in the folder of --work. The champion stays what it is: only an experiment promotes a challenger.
    """
    from pipelines.challenger import challenger_of_last_run
    from pipelines.check import chosen_recipe

    chosen = chosen_recipe(recipe, "", "", [])["recipe"]
    version = challenger_of_last_run(work, state_folder(state, work), mode, chosen)
    assert version.challenger is not None
    tell(version.challenger.why)
    typer.echo(f"{version.bundle_hash}")
