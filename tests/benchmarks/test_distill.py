from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.testtime.distill import fit_distilled, mean_logit
from tests.models.synthetic import FIELDS, random_rows
from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import DataError
from thinktwice.models import Backbone, DeepFMConfig, build_backbone
from thinktwice.stats.metrics import logloss
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of
from thinktwice.train.run import train

CONFIG = FinetuneConfig(batch_size=128, rate=2e-2, epochs=3.0)
SIZES = DeepFMConfig(dim=4, hidden=(16,), dropout=0.1, init_sd=0.1)
VALID = random_rows(1000, 2)


def plain(rows: EncodedRows, seed: int = 0) -> Backbone:
    model = build_backbone(SIZES, FIELDS, seed=seed)
    augmenter = Augmenter("mask_block", rows, FIELDS, CONFIG)
    train(model, augmenter, BlockLoader(rows), BlockLoader(VALID), CONFIG, table_l2=1e-4, epochs=3.0, seed=seed)
    return model


def distilled(rows: EncodedRows, teacher_logit: np.ndarray, soft: float) -> Backbone:
    return fit_distilled(
        rows,
        VALID,
        FIELDS,
        SIZES,
        CONFIG,
        teacher_logit,
        table_l2=1e-4,
        augmentation="mask_block",
        soft=soft,
        seed=0,
    )


def test_without_a_share_of_the_teachers_it_is_plain_training_to_the_last_bit() -> None:
    rows = random_rows(3000, 1)
    expected = plain(rows).state_dict()
    found = distilled(rows, np.random.default_rng(0).normal(size=3000), 0.0).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_what_the_teachers_know_is_learned_where_the_labels_say_nothing() -> None:
    rows = random_rows(3000, 1)
    teachers = [plain(rows, seed) for seed in (0, 1)]
    teacher_logit = mean_logit(teachers, rows)
    rows.label[:] = np.random.default_rng(0).random(3000) < 0.5
    found = [
        logloss(VALID.label, logits_of(distilled(rows, teacher_logit, s), BlockLoader(VALID))) for s in (0, 0.5, 1)
    ]
    taught = logloss(VALID.label, mean_logit(teachers, VALID))
    assert found[2] < taught + 0.02
    assert found[2] < found[1] < found[0] - 0.05


def test_the_mean_logit_is_that_of_the_models_and_the_training_rows_are_left_alone() -> None:
    rows = random_rows(300, 3)
    label = rows.label.copy()
    models = [build_backbone(SIZES, FIELDS, seed=seed).eval() for seed in (0, 1)]
    with torch.no_grad():
        a, b = (model(rows.batch(slice(None))).double().numpy() for model in models)
    logit = mean_logit(models, rows)
    np.testing.assert_allclose(logit, (a + b) / 2, atol=1e-6)
    distilled(rows, logit, 1.0)
    assert np.array_equal(rows.label, label)


def test_teachers_of_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(299,\), train labels \(300,\): score the train rows"):
        distilled(random_rows(300), np.zeros(299), 0.5)
