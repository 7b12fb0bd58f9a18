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
) -> None:
    """Fine-tune by the recipe of that name; ``code_version`` is part of the cache key and does nothing else."""
    from thinktwice import recipes
    from thinktwice.train.finetune import finetune as run

    init_dir = pretrained.path if pretrained is not None else None
    settings = recipes.get(recipe)
    record = run(training_set.path, model.path, settings.model, settings.finetune, seed=seed, init_dir=init_dir)
    chosen = record.chosen
    model.metadata.update(
        recipe=recipe, seed=seed, code_version=code_version, init=record.init, **chosen.model_dump(mode="json")
    )
    metrics.log_metric("valid_logloss", record.valid.logloss)
    if record.valid.auc is not None:  # not defined with one class
        metrics.log_metric("valid_auc", record.valid.auc)
    metrics.log_metric("table_l2", chosen.table_l2)
    metrics.log_metric("epochs", chosen.epochs)
