"""Pipeline step ``launch_trainjob``: run a training step as a TrainJob of Kubeflow Trainer and wait for it."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.step import step


@step
def launch_trainjob(
    training_set: Input[Dataset],
    training_step: str,
    recipe: str,
    seed: int,
    code_version: str,
    run_id: str,
    image: str,
    placement: dict,
    model: Output[Model],
    metrics: Output[Metrics],
    deadline_s: int = 43200,
    pretrained: Input[Model] = None,
    backbone: str = "",
    checkpoints: str = "",
    pretraining: str = "",
) -> None:
    """Create or find the TrainJob of this run, wait, and take over its model."""
    from pathlib import Path

    from components.training.launch_trainjob.api import connect
    from components.training.launch_trainjob.folders import read_result
    from components.training.launch_trainjob.launch import launch
    from components.training.launch_trainjob.objects import JobSettings

    settings = JobSettings.model_validate(
        {
            "run": run_id,
            "step": training_step,
            "training_set": training_set.uri,
            "pretrained": pretrained.uri if pretrained is not None else "",
            "out": model.uri.rstrip("/") + "-trainjob",
            "recipe": recipe,
            "backbone": backbone,
            "checkpoints": checkpoints,
            "pretraining": pretraining,
            "seed": seed,
            "code_version": code_version,
            "image": image,
            "placement": placement,
            "deadline_s": deadline_s,
        }
    )
    launch(settings, connect(), wait_s=2 * deadline_s, tell=lambda line: print(line, flush=True))  # noqa: T201
    result = read_result(settings.out, Path(model.path))
    model.metadata.update(code_version=code_version, **result.metadata)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
