"""What tuning keeps: the run that validates best, short or full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.synthetic import FIELDS, random_rows
from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.models import DeepFMConfig, build_backbone
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune
from thinktwice.train.loader import BlockLoader
from thinktwice.train.run import EvalPoint, Trained
from thinktwice.train.tune import tune

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
        done = tune(
            config,
            lambda: build_backbone(DeepFMConfig(dim=2, hidden=(4,)), FIELDS),
            {"none": Augmenter("none", random_rows(20), FIELDS, config)},
            rows,
            rows,
            seed=0,
        )
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
