"""From a training set folder to a model folder, with and without pre-training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.data.training_set import load_training_set
from thinktwice.errors import BundleError, DataError, PipelineError
from thinktwice.files import sha256_file
from thinktwice.models import load_model
from thinktwice.pretrain.pretrain import pretrain
from thinktwice.stats.metrics import auc, logloss
from thinktwice.train.finetune import finetune
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of
from thinktwice.train.record import FinetuneRecord
from thinktwice.versioned import read_result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("small") / "training_set")


def recipe_with_a_choice() -> recipes.Recipe:
    tiny = recipes.get("tiny")
    config = tiny.finetune.model_copy(
        update={"table_l2": (1e-4, 10.0), "augmentations": ("none", "mask_block"), "rate": 2e-2, "epochs": 4.0}
    )
    return tiny.model_copy(update={"finetune": config})


def test_a_choice_is_made_on_validation_and_recorded(data: Path, tmp_path: Path) -> None:
    record = finetune(data, tmp_path / "model", recipe_with_a_choice().model, recipe_with_a_choice().finetune)
    path = tmp_path / "model" / "training.json"
    assert record == read_result(path, FinetuneRecord, BundleError, "train again")
    trials = record.trials
    assert len(trials) == 3
    best = min(trials, key=lambda t: t.best.valid_logloss)
    assert [t.chosen for t in trials] == [t is best for t in trials]
    assert record.chosen.table_l2 == best.candidate.table_l2 == 1e-4  # L2 of 10 leaves nothing to learn

    model, info = load_model(tmp_path / "model")
    opened = load_training_set(data)
    valid = opened.part("valid")
    logit = logits_of(model, BlockLoader(valid))
    calibrated = info.calibration.a * logit.astype(np.float64) + info.calibration.b
    assert logloss(valid.label, calibrated) == pytest.approx(record.valid.logloss)
    assert logloss(valid.label, calibrated) <= min(look.valid_logloss for look in record.curve) + 1e-9
    test = opened.part("test")
    assert auc(test.label, logits_of(model, BlockLoader(test))) > 0.7
    assert info.provenance["train_window"] == list(opened.train_window)


def test_the_same_seed_writes_the_same_bytes(data: Path, tmp_path: Path) -> None:
    recipe = recipes.get("tiny")
    for name in ("a", "b"):
        pretrain(data, tmp_path / name / "pretrained", recipe.model, recipe.pretrain, seed=2)
        finetune(
            data,
            tmp_path / name / "model",
            recipe.model,
            recipe.finetune,
            seed=2,
            init_dir=tmp_path / name / "pretrained",
        )
    for file in ("pretrained/weights.safetensors", "model/weights.safetensors", "model/model.json"):
        assert sha256_file(tmp_path / "a" / file) == sha256_file(tmp_path / "b" / file)


def test_fine_tuning_starts_from_all_pretrained_parameters(data: Path, tmp_path: Path) -> None:
    recipe = recipes.get("tiny")
    pretrain(data, tmp_path / "pretrained", recipe.model, recipe.pretrain)
    still = recipe.finetune.model_copy(update={"rate": 1e-12, "epochs": 0.1})
    record = finetune(data, tmp_path / "model", recipe.model, still, init_dir=tmp_path / "pretrained")
    before, info = load_model(tmp_path / "pretrained")
    after, _ = load_model(tmp_path / "model")
    assert record.init == "pretrained"
    assert info.stage == "pretrained"
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, atol=1e-6, rtol=0)


def test_a_model_of_another_training_set_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = recipes.get("tiny")
    other = build_small(tmp_path / "other", rows=300, seed=7)
    pretrain(other, tmp_path / "pretrained", recipe.model, recipe.pretrain)
    with pytest.raises(DataError, match="pre-train on the same training set"):
        finetune(data, tmp_path / "model", recipe.model, recipe.finetune, init_dir=tmp_path / "pretrained")
    assert not (tmp_path / "model").exists()


def test_every_recipe_exists_and_a_wrong_name_is_told_the_right_ones() -> None:
    assert sorted(recipes.RECIPES) == ["autoint", "dcnv2", "default", "ml-100k", "ml-1m", "tiny"]
    assert all(recipes.get(name).model.dim > 0 for name in recipes.RECIPES)
    with pytest.raises(PipelineError, match="did you mean ml-1m\\? Choose one of default, dcnv2, autoint, ml-1m"):
        recipes.get("ml-10m")


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_recipe_pretrains_and_trains(name: str, data: Path, tmp_path: Path) -> None:
    recipe = recipes.get(name)
    few = {"batch_size": 1024, "epochs": 1.0}
    short = recipe.model_copy(
        update={
            "pretrain": recipe.pretrain.model_copy(update=few),
            "finetune": recipe.finetune.model_copy(update=few | {"trial_epochs": 0.4, "rate": 1e-2}),
        }
    )
    pretrain(data, tmp_path / "pretrained", short.model, short.pretrain)
    for init in (None, tmp_path / "pretrained"):
        record = finetune(data, tmp_path / "model", short.model, short.finetune, init_dir=init)
        model, _ = load_model(tmp_path / "model")
        assert model.config == recipe.model
        assert record.curve[-1].valid_logloss < 0.7
        assert record.valid.auc > 0.5
    assert (model.config.name == "dcnv2") == (name == "dcnv2")


def test_trials_as_long_as_the_run_are_the_run(data: Path, tmp_path: Path) -> None:
    recipe = recipe_with_a_choice()
    full = recipe.finetune.model_copy(update={"trial_epochs": 2.0, "epochs": 2.0, "augmentations": ("none",)})
    alone = full.model_copy(update={"table_l2": (1e-4,)})
    record = finetune(
        data,
        tmp_path / "a",
        recipe.model,
        full,
    )
    finetune(
        data,
        tmp_path / "b",
        recipe.model,
        alone,
    )
    assert record.chosen.table_l2 == 1e-4
    first, again = load_model(tmp_path / "a")[0], load_model(tmp_path / "b")[0]
    assert torch.equal(first.embedding.table, again.embedding.table)


@pytest.mark.parametrize(("sparse_rows", "epochs"), [(1, 0.5), (10**9, 6.0)])
def test_a_vector_that_no_row_reads_has_no_random_direction(
    data: Path, tmp_path: Path, sparse_rows: int, epochs: float
) -> None:
    tiny = recipes.get("tiny")
    settings = {"sparse_rows": sparse_rows, "unknown_share": 0.0, "epochs": epochs, "table_l2": (1e-2,)}
    finetune(data, tmp_path / "model", tiny.model, tiny.finetune.model_copy(update=settings))
    model, _ = load_model(tmp_path / "model")
    train = load_training_set(data).part("train")
    unread = [column for column in range(train.ids.shape[1]) if (train.ids[:, column] > 0).all()]
    assert unread
    assert float(model.fill().detach()[unread].abs().max()) < 0.2 * tiny.model.init_sd
