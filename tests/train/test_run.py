from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.synthetic import FIELDS, random_rows
from thinktwice.data.encoded import Batch
from thinktwice.models import Backbone, DeepFMConfig, build_backbone
from thinktwice.stats.metrics import logloss
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import Augmentation, FinetuneConfig
from thinktwice.train.device import on_device, training_device
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import fit_calibration, known_auc, logits_of
from thinktwice.train.run import Trained, rate_factor, train

CONFIG = FinetuneConfig(batch_size=128, rate=2e-2, checks_per_epoch=3)


def trained(
    config: FinetuneConfig = CONFIG, seed: int = 0, epochs: float = 3.0
) -> tuple[Backbone, Trained, BlockLoader]:
    rows, valid = random_rows(3000, 1), BlockLoader(random_rows(1000, 2))
    model = build_backbone(DeepFMConfig(dim=4, hidden=(16,), dropout=0.1, init_sd=0.1), FIELDS, seed=seed)
    augmenter = Augmenter("mask_block", rows, FIELDS, config)
    done = train(model, augmenter, BlockLoader(rows), valid, config, table_l2=1e-4, epochs=epochs, seed=seed)
    return model, done, valid


def test_the_model_keeps_the_weights_of_its_best_look() -> None:
    config = CONFIG.model_copy(update={"rate": 0.2})  # so high that the last look is not the best
    model, done, valid = trained(config, epochs=6.0)
    assert done.best.valid_logloss == min(look.valid_logloss for look in done.curve)
    assert done.best != done.curve[-1]
    assert logloss(valid.label.numpy(), logits_of(model, valid)) == done.best.valid_logloss


def test_training_learns_and_the_seed_decides_every_bit() -> None:
    first, done, valid = trained()
    again, _, _ = trained()
    other, _, _ = trained(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.embedding.table, other.embedding.table)
    base = float(valid.label.mean())
    entropy = -(base * np.log(base) + (1 - base) * np.log(1 - base))
    assert done.best.valid_logloss < entropy - 0.05
    assert done.best.valid_auc > 0.7


@pytest.mark.parametrize("kind", ["none", "mask_block"])
def test_every_vector_for_unknown_is_learned_where_the_data_has_no_unknown(kind: Augmentation) -> None:
    """Row 0 of protected fields, of sequences and vectors too: a new user or item arrives with exactly these."""
    rows = random_rows(3000, 1)
    rows.vectors["image"][:] = np.nan_to_num(rows.vectors["image"])
    rows.sequences["history"][:, 0] = 1
    assert bool((rows.ids > 0).all())
    loader = BlockLoader(rows)
    model = build_backbone(DeepFMConfig(dim=4, hidden=(16,), init_sd=0.1), FIELDS)
    start = model.fill().detach().clone()
    train(model, Augmenter(kind, rows, FIELDS, CONFIG), loader, loader, CONFIG, table_l2=0.0, epochs=1.0, seed=0)
    assert bool(((model.fill() - start).abs().amax(dim=1) > 1e-3).all())


@pytest.mark.parametrize("lost", ["user", "item"])
def test_a_row_of_a_new_user_or_item_is_scored_better_than_by_vectors_never_trained(lost: str) -> None:
    rows, valid = random_rows(6000, 1), random_rows(3000, 2)
    rows.vectors["image"][:] = np.nan_to_num(rows.vectors["image"])
    for place, entity in enumerate(FIELDS.entities[:4]):
        if entity == lost:
            valid.ids[:, place] = 0
    if lost == "user":
        valid.sequences["history"][:] = 0
    else:
        valid.vectors["image"][:] = np.nan
    found = []
    for share in (0.0, 0.02):
        config = CONFIG.model_copy(update={"unknown_share": share})
        model = build_backbone(DeepFMConfig(dim=4, hidden=(16,), init_sd=1.0), FIELDS)
        augmenter, loader = Augmenter("none", rows, FIELDS, config), BlockLoader(rows)
        train(model, augmenter, loader, loader, config, table_l2=1e-4, epochs=3.0, seed=0)
        found.append(logloss(valid.label, logits_of(model, BlockLoader(valid))))
    assert found[1] < found[0] - 0.02


def test_every_batch_is_moved_to_the_device_and_the_model_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved: list[torch.device] = []

    def spy(batch: Batch, device: torch.device) -> Batch:
        moved.append(device)
        return on_device(batch, device)

    expected, _, _ = trained(epochs=1.0)
    monkeypatch.setattr("thinktwice.train.loop.training_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("thinktwice.train.run.on_device", spy)
    model, _, _ = trained(epochs=1.0)
    assert moved == [torch.device("cpu")] * (3000 // CONFIG.batch_size)
    assert {value.device for value in model.state_dict().values()} == {torch.device("cpu")}
    if not torch.cuda.is_available():
        assert torch.equal(model.embedding.table, expected.embedding.table)


def test_a_batch_on_its_device_is_not_copied() -> None:
    batch = random_rows(5).batch(slice(None))
    there = on_device(batch, torch.device("cpu"))
    assert there.ids is batch.ids
    assert there.sequences["history"] is batch.sequences["history"]
    assert there.vectors["image"] is batch.vectors["image"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_gpu_trains_the_same_model_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    _, on_gpu, _ = trained(epochs=1.0)
    monkeypatch.setattr("thinktwice.train.loop.training_device", lambda: torch.device("cpu"))
    _, on_cpu, _ = trained(epochs=1.0)
    assert on_gpu.best.valid_logloss == pytest.approx(on_cpu.best.valid_logloss, abs=2e-2)  # dropout draws differ


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_large_tables_update_only_the_rows_of_a_batch(l2: float) -> None:
    rows = random_rows(64)
    rows.ids[:, 0] = rows.ids[:, 0] % 5 + 1
    config = CONFIG.model_copy(update={"sparse_rows": 1, "unknown_share": 0.0})
    model = build_backbone(DeepFMConfig(dim=4, hidden=(8,)), FIELDS)
    before = model.embedding.table.detach().clone()
    loader = BlockLoader(rows)
    augmenter = Augmenter("none", rows, FIELDS, config)
    train(model, augmenter, loader, loader, config, table_l2=l2, epochs=3, seed=0)
    moved = (model.embedding.table != before).any(dim=1)
    assert not bool(moved[6:40].any())
    assert bool(moved[1:6].all())
    assert not model.embedding.sparse_gradients


def test_sparse_and_dense_first_steps_agree_where_every_row_is_touched() -> None:
    """Adam's first step does not depend on history, so the two forms must agree on touched rows."""
    tables = []
    for sparse_rows in (1, 10**9):
        rows = random_rows(512)
        config = CONFIG.model_copy(
            update={"sparse_rows": sparse_rows, "unknown_share": 0.0, "batch_size": 512, "warmup": 0.0}
        )
        model = build_backbone(DeepFMConfig(dim=4, hidden=(8,)), FIELDS)
        before = model.embedding.table.detach().clone()
        loader = BlockLoader(rows)
        augmenter = Augmenter("none", rows, FIELDS, config)
        train(model, augmenter, loader, loader, config, table_l2=1e-3, epochs=1, seed=0)
        tables.append(model.embedding.table.detach() - before)
    touched = (tables[0] != 0).any(dim=1)
    assert int(touched.sum()) > 60
    close = torch.isclose(tables[0][touched], tables[1][touched], atol=2e-4)
    assert float(close.float().mean()) > 0.99


def test_rate_rises_and_falls_to_nothing() -> None:
    factors = [rate_factor(s / 100, 0.1) for s in range(101)]
    assert factors[0] == 0
    assert factors[-1] == 0
    assert np.argmax(factors) == 10
    assert rate_factor(0.0, 0.0) == 1.0


def test_auc_counts_ties_half_and_agrees_with_pairs() -> None:
    rng = np.random.default_rng(0)
    logit, label = rng.integers(0, 5, 80).astype(np.float32), (rng.random(80) < 0.4).astype(np.float32)
    up, down = logit[label == 1], logit[label == 0]
    wins = (up[:, None] > down).sum() + 0.5 * (up[:, None] == down).sum()
    assert known_auc(label, logit) == pytest.approx(wins / (len(up) * len(down)))
    assert known_auc(np.ones(80), logit) is None


def test_calibration_recovers_slope_and_offset() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200_000)
    label = (rng.random(200_000) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    found = fit_calibration(((truth + 0.7) / 0.5).astype(np.float32), label)
    assert found.a == pytest.approx(0.5, abs=0.01)
    assert found.b == pytest.approx(-0.7, abs=0.02)
    assert fit_calibration(truth, np.ones_like(truth)).a == 1.0
