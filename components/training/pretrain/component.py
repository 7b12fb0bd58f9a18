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
) -> None:
    """Pre-train by the recipe of that name; ``code_version`` is part of the cache key and does nothing else."""
    from components.training.steps import run_training

    result = run_training("pretrain", training_set.path, pretrained.path, recipe, seed)
    pretrained.metadata.update(code_version=code_version, **result.metadata)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
