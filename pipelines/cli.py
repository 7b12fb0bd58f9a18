"""`thinktwice pipeline`: run the training pipeline here, or compile it for a cluster."""

# Annotations stay real objects here: typer reads them.
from pathlib import Path
from typing import Annotated

import typer

from components.choices import DeployTarget, Profile
from pipelines.cluster_cli import schedule, submit, upload
from pipelines.options import NodeOptions, PipelineOption, RunOptions, arguments_of, nodes_of
from thinktwice.choices import ChallengerMode
from thinktwice.console.groups import grouped
from thinktwice.console.options import WORK, State, Until, Work, state_folder
from thinktwice.console.output import tell
from thinktwice.console.stop import NOTHING_HALF_WRITTEN, on_stop
from thinktwice.errors import PipelineError

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
    "deploy-to-cluster": "start the canary",
    "challenge": "package the challenger",
}


@app.command()
@grouped
def run(
    options: RunOptions,
    until: Until = "",
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
            f"the profile {profile} needs a cluster: start it there with `thinktwice pipeline submit --host URL --profile {profile}`, or "
            f"compile it with `thinktwice pipeline compile --profile {profile} --out pipeline.yaml`"
        )
    from pipelines.check import checkpoints_place, continued_bundle
    from pipelines.run import run_local
    from pipelines.summary import print_summary
    from thinktwice.console.stages import StageBoard
    from thinktwice.console.terminal import console_here
    from thinktwice.interrupts import interruptible

    arguments = arguments_of(
        options,
        until,
        checkpoints=checkpoints_place(options.checkpoints),
        continue_from=continued_bundle(options.continue_from),
        target=target,
    )
    console = console_here()
    on_stop(NOTHING_HALF_WRITTEN)
    with interruptible(), StageBoard(console, TITLES) as board:
        result = run_local(arguments, work_dir=work, state_dir=state_folder(state, work), on_event=board.feed)
    print_summary(console, result)


@app.command("compile")
@grouped
def compile_(
    node_options: NodeOptions,
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    profile: Annotated[Profile, typer.Option(help="Where the tasks will run.")] = "gpu-single",
    kubernetes_manifest: Annotated[
        bool,
        typer.Option("--kubernetes-manifest", help="Write Pipeline and PipelineVersion objects for kubectl apply."),
    ] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of those objects.")] = "kubeflow",
    pipeline: PipelineOption = "training",
    scheduled: Annotated[
        bool,
        typer.Option("--scheduled", help="For recurring runs: read the log until the time a run is scheduled for."),
    ] = False,
) -> None:
    """Compile a pipeline into a file for a Kubeflow Pipelines cluster."""
    from components.step import IMAGE
    from pipelines.compile import compile_pipeline

    if scheduled and pipeline == "experiment":
        raise PipelineError("the pipeline experiment reads logs of its own: leave --scheduled out")
    compile_pipeline(
        profile,
        out,
        kubernetes_manifest=kubernetes_manifest,
        namespace=namespace,
        image=node_options.image or IMAGE,
        pipeline=pipeline,
        nodes=nodes_of(node_options),
        scheduled=scheduled,
    )
    tell(f"wrote {out}")


app.command()(submit)
app.command()(schedule)
app.command()(upload)


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
