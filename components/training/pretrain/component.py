"""Pipeline step ``pretrain``: absorbing-diffusion pre-training on the train part of a training set."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.step import step


@step
def pretrain(
    training_set: Input[Dataset],
    recipe: str,
    seed: int,
    code_version: str,
    pretrained: Output[Model],
    metrics: Output[Metrics],
    backbone: str = "",
    checkpoints: str = "",
    pretraining: str = "",
) -> None:
    """Pre-train by a recipe, its name or text; ``backbone`` and ``pretraining`` replace the recipe's unless they are empty.
    ``checkpoints`` is a folder or ``s3://BUCKET/FOLDER`` from which a killed step continues.

    ``code_version`` is part of the cache key and does nothing else.
    """
    from components.training.steps import run_training

    result = run_training(
        "pretrain",
        training_set.path,
        pretrained.path,
        recipe,
        seed,
        backbone=backbone,
        pretraining=pretraining,
        checkpoints=checkpoints,
    )
    pretrained.metadata.update(code_version=code_version, **result.metadata)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
