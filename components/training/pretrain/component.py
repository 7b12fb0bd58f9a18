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
    from thinktwice import recipes
    from thinktwice.pretrain.pretrain import pretrain as run

    settings = recipes.get(recipe)
    record = run(training_set.path, pretrained.path, settings.model, settings.pretrain, seed=seed)
    pretrained.metadata.update(recipe=recipe, seed=seed, code_version=code_version, train_rows=record.rows["train"])
    last = record.curve[-1]
    metrics.log_metric("label_logloss", last.label)
    for name, loss in last.fields.items():
        metrics.log_metric(f"loss_{name}", loss)
