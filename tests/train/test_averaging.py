"""The running average of weights: its formula, what a run keeps of it, and that a run can end anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.models.synthetic import FIELDS, random_rows
from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.models import build_backbone, load_model
from thinktwice.models.config import backbone_config
from thinktwice.stats.metrics import logloss
from thinktwice.train.augment import Augmenter
from thinktwice.train.averaging import EXPONENT, RunningAverage
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Steps, weights_of
from thinktwice.train.measure import logits_of
from thinktwice.train.run import Trained, risen, train
from thinktwice.train.unread import UnreadRows

TRAIN, VALID = random_rows(1536, 1), random_rows(500, 2)  # 12 steps per epoch
CONFIG = FinetuneConfig(schedule="averaged", batch_size=128, rate=2e-2)
Model = Any


def trained(epochs: float, config: FinetuneConfig = CONFIG, **options: Any) -> tuple[Model, Trained]:
    model = build_backbone(backbone_config("deepfm", dim=4, hidden=(8,), dropout=0.1, init_sd=0.1), FIELDS, seed=3)
    done = train(
        model, Augmenter("mask_block", TRAIN, FIELDS, config), BlockLoader(TRAIN), BlockLoader(VALID), config,
        table_l2=1e-4, epochs=epochs, seed=5, **options,
    )  # fmt: skip
    return model, done


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_average_weighs_every_state_by_a_power_of_its_position(values: list[float]) -> None:
    model = nn.Linear(1, 1, bias=False)
    average = RunningAverage(model)
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model)
    # Unrolled: the weight of state n is proportional to n (n + 1) ... (n + EXPONENT - 1).
    weights = np.array([np.prod([n + j for j in range(EXPONENT)], dtype=float) for n in range(1, len(values) + 1)])
    expected = float(np.average(np.float32(values), weights=weights))
    with average.in_place(model):
        assert float(model.weight.detach()) == pytest.approx(expected, abs=1e-4)
    assert float(model.weight.detach()) == np.float32(values[-1])


def test_what_changes_while_the_average_is_in_place_changes_the_average_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))  # with an integer buffer, which is no weight
    own = {name: value.clone() for name, value in weights_of(model).items()}
    average = RunningAverage(model)
    with pytest.raises(ZeroDivisionError), average.in_place(model):
        with torch.no_grad():
            model[0].weight.fill_(7.0)
        raise ZeroDivisionError
    assert all(torch.equal(value, own[name]) for name, value in weights_of(model).items())
    assert float(average.values["0.weight"].min()) == 7.0
    other = RunningAverage(model)
    other.restore({name: value.clone() for name, value in average.state().items()})
    assert torch.equal(other.values["0.weight"], average.values["0.weight"])


def test_a_longer_run_begins_with_the_evaluations_of_a_shorter_one_and_keeps_the_best_of_all() -> None:
    """So the length that a run found gives the same weights again, when it is asked for."""
    model, done = trained(5.0)
    _, short = trained(2.0)
    assert done.curve[: len(short.curve)] == short.curve
    assert done.best.valid_logloss == min(point.valid_logloss for point in done.curve)
    assert done.best != done.curve[-1]  # it trained for too long, and that cost nothing
    valid = BlockLoader(VALID)
    assert logloss(valid.label.numpy(), logits_of(model, valid)) == done.best.valid_logloss
    again, at_once = trained(done.best.epoch)
    assert at_once.best == at_once.curve[-1] == done.best and same(model, again)


@given(st.integers(1, 400), st.integers(1, 4000))
def test_a_length_that_was_measured_in_steps_gives_these_steps(per_epoch: int, steps: int) -> None:
    assert Steps.of(per_epoch * 8, 8, steps / per_epoch) == Steps(8, per_epoch, steps)


def test_a_run_that_is_ended_keeps_its_best_weights() -> None:
    model, done = trained(6.0)
    early, ended = trained(6.0, ends=lambda done, best: done - best >= 1.0)
    assert ended.best == done.best and same(model, early)
    last = ended.curve[-1].epoch
    assert last < done.curve[-1].epoch and last - ended.best.epoch >= 1.0
    assert ended.curve == done.curve[: len(ended.curve)]


def test_the_end_of_an_averaged_run_has_averaged_weights() -> None:
    model, done = trained(5.0, annealed=True)
    assert done.best == done.curve[-1]
    valid = BlockLoader(VALID)
    assert logloss(valid.label.numpy(), logits_of(model, valid)) == done.best.valid_logloss


def test_rows_that_no_step_reads_keep_their_values_in_the_average() -> None:
    model = build_backbone(backbone_config("deepfm", dim=4, hidden=(8,)), FIELDS, seed=3)
    rows = torch.tensor([1, 4])
    values = torch.full((2, model.embedding.table.shape[1]), 0.5)
    unread = UnreadRows({"embedding.table": (rows, values)})
    with torch.no_grad():
        model.embedding.table[rows] = values
    train(
        model, Augmenter("none", TRAIN, FIELDS, CONFIG), BlockLoader(TRAIN), BlockLoader(VALID), CONFIG,
        table_l2=0.1, epochs=1.0, seed=5, unread=unread,
    )  # fmt: skip
    assert torch.equal(model.embedding.table.detach()[rows], values)


def test_the_rate_rises_in_the_first_epoch_and_stays() -> None:
    assert [risen(done, 0.5) for done in (0.0, 0.25, 0.5, 8.0)] == [0.0, 0.5, 1.0, 1.0]
    assert risen(0.0, 0.0) == 1.0


def test_a_budget_is_spent_on_runs_that_find_their_length(tmp_path: Path) -> None:
    data = build_small(tmp_path / "training_set", rows=1000)
    recipe = recipes.resolved(
        "tiny",
        settings=[
            "finetune.schedule=averaged", "finetune.budget=9", "finetune.epochs=3", "finetune.rate=0.02",
            "finetune.table_l2=[0.001]", "finetune.unknown_shares=[0.0]", "finetune.augmentations=[none, mask_block]",
        ],
    )  # fmt: skip
    record = finetune(data, tmp_path / "model", recipe.model, recipe.finetune)
    assert len({trial.candidate.table_l2 for trial in record.trials}) > 1  # the grid of one value opened
    assert all(trial.candidate.length == trial.best.epoch for trial in record.trials)
    (chosen,) = [trial for trial in record.trials if trial.chosen]
    assert chosen.best.valid_logloss == min(trial.best.valid_logloss for trial in record.trials)
    assert record.chosen.length == record.chosen.epochs == chosen.best.epoch
    # Its settings give the same weights again, without a search.
    again = record.chosen_settings.model_copy(update={"budget": None, "table_l2": (record.chosen.table_l2,)})
    again = again.model_copy(update={"augmentations": (record.chosen.augmentation,)})
    finetune(data, tmp_path / "again", recipe.model, again)
    assert same(load_model(tmp_path / "model")[0], load_model(tmp_path / "again")[0])
