"""Hyper-parameter search over a recipe on the training set of a run: the best settings become a recipe file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml

from pipelines.check import chosen_recipe
from pipelines.tune_page import render_study
from thinktwice import recipes
from thinktwice.console.options import LAST_RUN
from thinktwice.data.encoder import VOCABULARY_FILE
from thinktwice.data.training_set import load_training_set
from thinktwice.errors import PipelineError, reason
from thinktwice.files import atomic_file, read_json, sha256_file, sha256_text
from thinktwice.models import FieldSpace, build_backbone
from thinktwice.recipes import Recipe
from thinktwice.selection.study import StudyResult, TrialResult, search
from thinktwice.train.augment import Augmenter
from thinktwice.train.checks import check_rows
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.run import EvalPoint, train
from thinktwice.train.weights import row_weights

PAGE = "tune.html"
SHORTEST, LONGEST = 0.5, 8.0  # epochs
SIZES = ("[64, 32]", "[128, 64]", "[256, 128]", "[400, 400, 400]")
STEPS = 20  # steps of a run at which runs are compared; about half of them are evaluated
BATCH_SIZES, DIMS = (256, 512, 1024, 2048), (4, 8, 16, 32)
AUGMENTATIONS, UNKNOWN_SHARES, SMOOTHINGS = ("none", "mask_block"), (0.0, 0.01, 0.05), (0.0, 0.05)
RATES, L2S = (5e-4, 2e-2), (1e-5, 3e-2)
WITHOUT_TRUNK = ("lr", "fm")


def tune(
    training_set: Path | str,
    out: Path | str,
    folder: Path | str,
    recipe: Recipe,
    *,
    minutes: float,
    seed: int,
    on_trial: Callable[[TrialResult], None] = lambda result: None,
    clock: Callable[[], float] = time.monotonic,
) -> StudyResult:
    """Search, and write the recipe file ``out`` and the page beside the state in ``folder``.

    ``on_trial`` is called with every trial that ends; ``clock`` gives the seconds by which the budget is spent.

    Raises:
        DataError: the training set is missing or damaged. PipelineError: ``out`` cannot be written, the training set continues a bundle, the folder is of another
            search, or no trial gave a loss.
    """
    if not Path(out).absolute().parent.is_dir():
        raise PipelineError(f"{out} cannot be written: the folder {Path(out).parent} does not exist, create it")
    data = load_training_set(training_set)
    if data.start is not None:
        raise PipelineError(
            f"training set {training_set} continues a bundle, whose sizes are given: search on one of a run without --continue-from"
        )
    fields = FieldSpace.of(data.schema, data.encoder)
    parts = {"train": data.part("train"), "validation": data.part("valid")}
    for name, part in parts.items():
        check_rows(part, fields, name)
    rows, valid = BlockLoader(parts["train"]), BlockLoader(parts["validation"])

    def objective(trial: optuna.Trial, ends: float) -> float:
        tried = with_settings(recipe, suggested(trial, recipe))
        config = tried.finetune.model_copy(
            update={"checks_per_epoch": max(1, round(STEPS / tried.finetune.epochs / 2))}
        )

        reported = -1

        def watch(point: EvalPoint) -> None:
            nonlocal reported
            if (
                step := round(STEPS * point.epoch / config.epochs)
            ) > reported:  # the last evaluation may follow closely
                trial.report(point.valid_logloss, step)
                reported = step
            late = clock() > ends and any(t.state.name == "COMPLETE" for t in trial.study.trials)
            if late or trial.should_prune():
                raise optuna.TrialPruned

        kind = config.augmentations[0]
        trained = train(
            build_backbone(tried.model, fields, seed=seed),
            Augmenter(kind, parts["train"], fields, config),
            rows,
            valid,
            config,
            table_l2=config.table_l2[0],
            epochs=config.epochs,
            seed=seed,
            annealed=config.schedule == "linear",  # an averaged run may keep any of its weights
            weights=row_weights(parts["train"], config),
            watch=watch,
        )
        trial.set_user_attr("AUC", trained.best.valid_auc)
        return trained.best.valid_logloss

    vocabularies = sha256_file(Path(training_set) / VOCABULARY_FILE)
    identity = sha256_text(
        recipe.model_dump_json(), data.info.model_dump_json(), vocabularies, str(seed), torch.__version__
    )
    found = search(
        folder,
        objective,
        minutes=minutes,
        seed=seed,
        identity=identity,
        first=first_settings(recipe),
        on_trial=on_trial,
        clock=clock,
    )
    winner = with_settings(recipe, found.best.settings)
    _write(Path(out), winner, found)
    with atomic_file(Path(folder) / PAGE) as temporary:
        temporary.write_text(render_study(found, data.schema.name, minutes), encoding="utf-8")
    return found


def suggested(trial: optuna.Trial, recipe: Recipe) -> dict[str, Any]:
    """The settings of a trial by their names in a recipe."""
    out: dict[str, Any] = {
        "finetune.rate": trial.suggest_float("finetune.rate", *RATES, log=True),
        "finetune.table_l2": trial.suggest_float("finetune.table_l2", *L2S, log=True),
        "finetune.epochs": trial.suggest_float("finetune.epochs", SHORTEST, LONGEST, log=True),
        "finetune.batch_size": trial.suggest_categorical("finetune.batch_size", BATCH_SIZES),
        "finetune.augmentations": trial.suggest_categorical("finetune.augmentations", AUGMENTATIONS),
        "finetune.unknown_share": trial.suggest_categorical("finetune.unknown_share", UNKNOWN_SHARES),
        "finetune.label_smoothing": trial.suggest_categorical("finetune.label_smoothing", SMOOTHINGS),
        "model.dim": trial.suggest_categorical("model.dim", DIMS),
    }
    if recipe.model.name not in WITHOUT_TRUNK:
        out["model.hidden"] = trial.suggest_categorical("model.hidden", SIZES)
        out["model.dropout"] = trial.suggest_float("model.dropout", 0.0, 0.4, step=0.1)
    return out


def first_settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe itself, as far as the search covers its settings: the winner is not worse than where it began."""
    config, model = recipe.finetune, recipe.model
    l2 = sorted(config.table_l2)[len(config.table_l2) // 2]
    first: dict[str, Any] = {
        "finetune.rate": _within(config.rate, RATES),
        "finetune.table_l2": _within(l2, L2S),
        "finetune.epochs": _within(_first_length(config), (SHORTEST, LONGEST)),
    }
    for name, value, choices in (
        ("finetune.batch_size", config.batch_size, BATCH_SIZES),
        ("finetune.augmentations", config.augmentations[0], AUGMENTATIONS),
        ("finetune.unknown_share", config.unknown_share, UNKNOWN_SHARES),
        ("finetune.label_smoothing", config.label_smoothing, SMOOTHINGS),
        ("model.dim", model.dim, DIMS),
    ):
        if value in choices:
            first[name] = value
    if model.name not in WITHOUT_TRUNK:
        if (hidden := json.dumps(list(model.hidden))) in SIZES:
            first["model.hidden"] = hidden
        if model.dropout <= 0.4 and round(model.dropout, 1) == model.dropout:
            first["model.dropout"] = model.dropout
    return first


def _first_length(config: FinetuneConfig) -> float:
    """The length that a recipe tries first, or the longest where a run finds its own."""
    return config.trial_epochs if config.budget and config.schedule == "linear" else config.epochs


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def with_settings(recipe: Recipe, settings: Any) -> Recipe:
    """The recipe with the settings of a trial: one candidate of each, of a fixed length."""
    fixed = ["finetune.budget=null", f"finetune.trial_epochs={settings['finetune.epochs']!r}"]
    pairs = [*(f"{name}={value}" for name, value in settings.items()), *fixed]
    return recipes.resolved(recipe.model_dump_json(), settings=pairs)


def _write(out: Path, winner: Recipe, found: StudyResult) -> None:
    """The recipe file: everything the winner sets, and where it comes from."""
    content = winner.model_dump(mode="json")
    head = (
        f"# The best of {len(found.trials)} trials of `thinktwice tune`: validation logloss {found.best.loss:.5f}.\n"
        "# Train by it: thinktwice pipeline run --recipe THIS_FILE\n"
    )
    with atomic_file(out) as temporary:
        temporary.write_text(head + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    if recipes.from_file(out) != winner:
        raise PipelineError(f"{out} does not read back as the winner: report this as a fault")


def chosen_training(
    settings: Sequence[str], recipe: str, backbone: str, place: Path, training_set: Path | None
) -> tuple[Path, Recipe]:
    """The training set, by default that of the last run in ``place``, and the recipe to search over.

    Raises:
        PipelineError: there is no finished run there, or something of the recipe is unknown.
    """
    chosen = chosen_recipe(recipe, backbone, "", settings)
    found = recipes.resolved(chosen["recipe"], backbone=chosen["backbone"])
    if training_set is not None:
        return training_set, found
    try:
        return Path(read_json(place / LAST_RUN)["training_set"]), found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{place} contains no finished run ({reason(error)}): run `thinktwice pipeline run`, or give --training-set"
        ) from error
