"""The training steps as functions on folders: for the KFP steps, and for the pods of a TrainJob."""

from __future__ import annotations

from pathlib import Path

from components.choices import TrainingStep
from thinktwice import recipes
from thinktwice.files import sha256_text
from thinktwice.frozen import Frozen
from thinktwice.models.absent import is_absent, write_absent


class StepResult(Frozen):
    """What a training step reports beside its model: metadata of the model artifact, and scalar metrics."""

    metadata: dict[str, str | int | float | bool | None]
    metrics: dict[str, float]


def run_training(
    step: TrainingStep,
    training_set: str,
    model: str,
    recipe: str,
    seed: int,
    pretrained: str | None = None,
    *,
    backbone: str = "",
    pretraining: str = "",
    checkpoints: str = "",
) -> StepResult:
    """Run one step.

    Args:
        training_set: folder of ``build_training_set``.
        model: folder to write.
        recipe: name, or text of a recipe file.
        pretrained: folder of a pre-trained model to start from, for ``finetune``.
        backbone, pretraining: replace the recipe's unless they are empty.
        checkpoints: folder or ``s3://BUCKET/FOLDER``; the step has a folder of its own in it.

    Raises:
        DataError: the training set or the pre-trained model is damaged or does not fit. TrainingError: the loss diverged.
        ResourceError: a promised GPU is missing. PipelineError: the recipe, or a part of it, is unknown.
    """
    settings = recipes.resolved(recipe, backbone=backbone, pretraining=pretraining)
    if settings.pretraining == "none" if step == "pretrain" else pretrained and is_absent(pretrained):
        write_absent(model, "the recipe has no pre-training")
        return StepResult(metadata={"recipe": recipe, "seed": seed, "pretraining": "none"}, metrics={})
    if checkpoints:
        name = f"{step}-pretrained" if pretrained else step
        checkpoints = f"{checkpoints.rstrip('/')}/{name}-{sha256_text(settings.model_dump_json(), str(seed))[:12]}"
    if step == "pretrain":
        from thinktwice.pretrain.pretrain import pretrain

        trained = pretrain(
            training_set,
            model,
            settings.model,
            settings.pretrain,
            seed=seed,
            checkpoints=checkpoints,
            kind="hetegenctr" if settings.pretraining == "hetegenctr" else "dgenctr",
        )
        last = trained.curve[-1]
        losses = {f"loss_{name}": loss for name, loss in last.fields.items()}
        return StepResult(
            metadata={"recipe": recipe, "seed": seed, "train_rows": trained.rows["train"]},
            metrics={"label_logloss": last.label, **losses},
        )
    from thinktwice.train.finetune import finetune

    init_dir = Path(pretrained) if pretrained else None
    record = finetune(
        training_set, model, settings.model, settings.finetune, seed=seed, init_dir=init_dir, checkpoints=checkpoints
    )
    chosen = record.chosen
    auc = {} if record.valid.auc is None else {"valid_auc": record.valid.auc}  # not defined with one class
    return StepResult(
        metadata={
            "recipe": recipe,
            "seed": seed,
            "init": record.init,
            **chosen.model_dump(mode="json", exclude_none=True),
        },
        metrics={"valid_logloss": record.valid.logloss, **auc, "table_l2": chosen.table_l2, "epochs": chosen.epochs},
    )
