"""Pipeline step ``finetune``: train on clicks, tuned on validation, from scratch or from a pre-trained model."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.step import step


@step
def finetune(
    training_set: Input[Dataset],
    recipe: str,
    seed: int,
    code_version: str,
    model: Output[Model],
    metrics: Output[Metrics],
    pretrained: Input[Model] = None,
    backbone: str = "",
    checkpoints: str = "",
) -> None:
    """Fine-tune by a recipe, its name or text; ``backbone`` replaces the recipe's unless it is empty. ``checkpoints`` is a folder
    or ``s3://BUCKET/FOLDER`` from which a killed step continues.

    ``code_version`` is part of the cache key and does nothing else.
    """
    from components.training.steps import run_training

    init_dir = pretrained.path if pretrained is not None else None
    result = run_training(
        "finetune", training_set.path, model.path, recipe, seed, init_dir, backbone=backbone, checkpoints=checkpoints
    )
    model.metadata.update(code_version=code_version, **result.metadata)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
