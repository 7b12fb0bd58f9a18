"""What tuning keeps: the run that validates best, short or full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.synthetic import FIELDS, random_rows
from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import DataError
from thinktwice.models import DeepFMConfig, build_backbone
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import fit as pretrain
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune, fit
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of
from thinktwice.train.run import EvalPoint, Trained, smoothed
from thinktwice.train.tune import TrainingParts, tune
from thinktwice.train.weights import DAY, row_weights

LOSS = st.floats(0.1, 1.0).map(lambda value: round(value, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(LOSS, min_size=1, max_size=4), LOSS)
def test_the_run_with_the_lowest_validation_logloss_is_kept(trials: list[float], full: float) -> None:
    """`train` is scripted here, so that any order of losses can be tried; the test below trains."""
    table_l2 = tuple(10.0 ** -(n + 1) for n in range(len(trials)))
    config = FinetuneConfig(table_l2=table_l2, augmentations=("none",), trial_epochs=1.0, epochs=4.0)
    script = dict(zip(table_l2, trials, strict=True))

    def scripted(model: Any, *_: Any, table_l2: float, epochs: float, **__: Any) -> Trained:
        point = EvalPoint(epochs, 0.5, full if epochs == config.epochs else script[table_l2], 0.5)
        return Trained([point], point)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thinktwice.train.tune.train", scripted)
        rows = BlockLoader(random_rows(20))
        augmenters: dict[Any, Augmenter] = {"none": Augmenter("none", random_rows(20), FIELDS, config)}
        start = lambda: build_backbone(DeepFMConfig(dim=2, hidden=(4,)), FIELDS)  # noqa: E731
        done = tune(config, TrainingParts(start, augmenters, rows, rows, seed=0))
    tried = [*trials, full] if len(trials) > 1 else [full]  # a single candidate needs no trial
    assert done.trained.best.valid_logloss == min(tried)
    assert len(done.trials) == len(tried) - 1
    best = min(table_l2, key=script.__getitem__) if len(trials) > 1 else table_l2[0]
    assert done.chosen.table_l2 == best
    # Of equals the shorter run, which was there first, is kept.
    assert done.trained.best.epoch == (config.epochs if full < min(trials) or len(trials) == 1 else 1.0)


@pytest.mark.parametrize(("trial_epochs", "epochs", "full_is_better"), [(8.0, 60.0, False), (1.0, 8.0, True)])
def test_a_full_run_that_trains_for_too_long_does_not_replace_a_better_trial(
    trial_epochs: float, epochs: float, full_is_better: bool, tmp_path: Path
) -> None:
    data = build_small(tmp_path / "training_set", rows=2000)
    tiny = recipes.get("tiny")
    update = {"table_l2": (1e-6, 1e-5), "trial_epochs": trial_epochs, "epochs": epochs, "rate": 6e-2}
    recipe = tiny.model_copy(update={"finetune": tiny.finetune.model_copy(update=update)})
    record = finetune(data, tmp_path / "model", recipe.model, recipe.finetune)
    kept = min(look.valid_logloss for look in record.curve)
    best_trial = min(trial.best.valid_logloss for trial in record.trials)
    last_epoch = record.curve[-1].epoch
    if full_is_better:
        assert kept < best_trial and last_epoch == pytest.approx(epochs, abs=0.5)
    else:
        assert kept == best_trial and last_epoch == pytest.approx(trial_epochs, abs=0.5)
    assert record.chosen.epochs <= last_epoch


def test_a_budget_finds_the_length_and_keeps_annealed_weights(tmp_path: Path) -> None:
    data = build_small(tmp_path / "training_set", rows=2000)
    recipe = recipes.resolved(
        "tiny",
        settings=[
            "finetune.budget=14", "finetune.trial_epochs=0.5", "finetune.epochs=8", "finetune.rate=0.02",
            "finetune.table_l2=[0.001]", "finetune.unknown_shares=[0.0, 0.05]", "finetune.augmentations=[none, mask_block]",
        ],
    )  # fmt: skip
    record = finetune(data, tmp_path / "model", recipe.model, recipe.finetune)
    lengths = [trial.candidate.length or 0.0 for trial in record.trials]
    assert sum(lengths) <= 14 and lengths[:2] == [0.5, 1.0]
    assert {trial.candidate.unknown_share for trial in record.trials} > {0.01}
    assert len({trial.candidate.table_l2 for trial in record.trials}) > 1  # the grid of one value opened
    best = min(trial.best.valid_logloss for trial in record.trials)
    (chosen,) = [trial for trial in record.trials if trial.chosen]
    assert chosen.best.valid_logloss == best == record.curve[-1].valid_logloss  # the end of its run
    assert record.chosen.length == chosen.candidate.length == pytest.approx(record.chosen.epochs, abs=0.3)
    assert record.chosen_settings.epochs == chosen.candidate.length


def test_labels_are_smoothed_and_rows_weighed(tmp_path: Path) -> None:
    label = torch.tensor([0.0, 1.0])
    assert torch.equal(smoothed(label, 0.0), label)
    torch.testing.assert_close(smoothed(label, 0.2), torch.tensor([0.1, 0.9]))
    rows = random_rows(500)
    rows.time[:] = np.arange(500) * DAY
    assert row_weights(rows, FinetuneConfig()) is None
    clicks = row_weights(rows, FinetuneConfig(click_weight=3.0))
    assert clicks is not None and float(clicks.mean()) == pytest.approx(1.0)
    ratio = clicks[rows.label == 1].unique() / clicks[rows.label == 0].unique()
    torch.testing.assert_close(ratio, torch.tensor([3.0]))
    recent = row_weights(rows, FinetuneConfig(half_life_days=10.0))
    assert recent is not None
    torch.testing.assert_close(recent[10:] / recent[:-10], torch.full((490,), 2.0))

    def trained(**settings: float) -> tuple[float, float]:
        """On validation: mean calibrated probability, and mean size of a logit before calibration."""
        config = FinetuneConfig(
            batch_size=128, rate=2e-2, table_l2=(1e-4,), augmentations=("none",), epochs=4.0, **settings
        )  # type: ignore[arg-type]
        done = fit(random_rows(3000, 1), random_rows(1000, 2), FIELDS, DeepFMConfig(dim=4, hidden=(8,)), config)
        logit = logits_of(done.model, BlockLoader(random_rows(1000, 2)))
        calibrated = 1 / (1 + np.exp(-done.calibration.a * logit - done.calibration.b))
        return float(calibrated.mean()), float(np.abs(logit).mean())

    (mean, size), (weighed, _), (_, smooth) = trained(), trained(click_weight=4.0), trained(label_smoothing=0.4)
    assert weighed == pytest.approx(mean, abs=0.02)  # calibration puts the click rate back
    assert smooth < 0.8 * size


@pytest.mark.parametrize("part", ["train", "validation"])
def test_rows_that_cannot_be_trained_on_are_refused_by_name(part: str) -> None:
    def refused(message: str, change: Callable[[EncodedRows], EncodedRows]) -> None:
        good, bad = random_rows(50), change(random_rows(50))
        train, valid = (bad, good) if part == "train" else (good, bad)
        with pytest.raises(DataError, match=message):
            fit(train, valid, FIELDS, DeepFMConfig(dim=2, hidden=()), FinetuneConfig())

    def with_label(rows: EncodedRows) -> EncodedRows:
        rows.label[7] = 0.5
        return rows

    def with_nan(rows: EncodedRows) -> EncodedRows:
        rows.label[8] = np.nan
        return rows

    def with_id(rows: EncodedRows) -> EncodedRows:
        rows.ids[3, 1] = 30
        return rows

    def with_history(rows: EncodedRows) -> EncodedRows:
        rows.sequences["history"][4, 2] = -1
        return rows

    refused(f"the {part} part has no rows", lambda rows: rows.take(np.arange(0)))
    refused(f"label of row 7 of the {part} part is 0.5, not 0 or 1", with_label)
    refused(f"label of row 8 of the {part} part is nan", with_nan)
    refused(f"row 3 of the {part} part has the id 30 in field 'item', whose vocabulary has 30", with_id)
    refused(f"row 4 of the {part} part has the id -1 in field 'history'", with_history)


def test_a_field_of_one_value_is_trained() -> None:
    rows, valid = random_rows(500, 1), random_rows(200, 2)
    rows.ids[:, 0] = valid.ids[:, 0] = 1
    done = fit(
        rows,
        valid,
        FIELDS,
        DeepFMConfig(dim=2, hidden=(4,)),
        FinetuneConfig(batch_size=64, epochs=1.0, table_l2=(1e-3,)),
    )
    assert np.isfinite(done.valid_logloss)
    denoised = pretrain(rows, FIELDS, DeepFMConfig(dim=2, hidden=(4,)), PretrainConfig(batch_size=64, epochs=1.0))
    assert all(np.isfinite(value) for value in denoised.curve[-1]["fields"].values())
