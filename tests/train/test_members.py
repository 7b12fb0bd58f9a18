from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.testtime.distill import mean_logit
from tests.models.synthetic import FIELDS, random_batch, random_rows
from thinktwice.data.encoded import Batch
from thinktwice.models import (
    BACKBONES,
    Backbone,
    BackboneConfig,
    DeepFMConfig,
    ModelInfo,
    backbone_config,
    build_backbone,
    load_model,
    write_model,
)
from thinktwice.stats.metrics import logloss
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.joint import Joint, RankOne, SharedTables
from thinktwice.train.loader import BlockLoader
from thinktwice.train.members import JOINT, MemberKind, fit_members
from thinktwice.train.run import Trained, train

CONFIG = FinetuneConfig(batch_size=128, rate=2e-2, epochs=3.0, checks_per_epoch=3)
TRAIN, VALID = random_rows(3000, 1), random_rows(1000, 2)
SIZES = DeepFMConfig(dim=4, hidden=(16,), dropout=0.1, init_sd=0.1)
JOINT_KINDS: tuple[MemberKind, ...] = ("shared_tables", "rank_one")

DEEP = sorted(set(BACKBONES) - {"lr", "fm"})  # these two are embeddings and a bias
WITH_MLP = sorted(set(DEEP) - {"finalmlp"})  # which has two


def sizes(name: str, dropout: float = 0.1) -> BackboneConfig:
    return backbone_config(**SIZES.model_dump() | {"name": name, "dropout": dropout})


def fitted(
    kind: MemberKind, *, name: str = "deepfm", count: int = 3, seed: int = 0, epochs: float = 3.0
) -> list[Backbone]:
    config = CONFIG.model_copy(update={"epochs": epochs})
    return fit_members(
        kind,
        TRAIN,
        VALID,
        FIELDS,
        sizes(name),
        config,
        table_l2=1e-4,
        augmentation="mask_loo",
        count=count,
        seed=seed,
    )


def trained(joint: Joint, config: FinetuneConfig = CONFIG, epochs: float = 3.0) -> Trained:
    augmenter = Augmenter("none", TRAIN, FIELDS, config)
    rows, valid = BlockLoader(TRAIN), BlockLoader(VALID)
    return train(joint, augmenter, rows, valid, config, table_l2=1e-4, epochs=epochs, seed=0)


def logloss_of(models: list[Backbone]) -> float:
    return logloss(VALID.label, mean_logit(models, VALID))


def test_members_of_their_own_are_plain_trainings_of_the_following_seeds() -> None:
    members = fitted("own", count=2, seed=4, epochs=1.0)
    augmenter = Augmenter("mask_loo", TRAIN, FIELDS, CONFIG)
    for seed, member in zip((4, 5), members, strict=True):
        plain = build_backbone(SIZES, FIELDS, seed=seed)
        rows, valid = BlockLoader(TRAIN), BlockLoader(VALID)
        train(plain, augmenter, rows, valid, CONFIG, table_l2=1e-4, epochs=1.0, seed=seed)
        assert all(torch.equal(value, member.state_dict()[name]) for name, value in plain.state_dict().items())
    assert not torch.equal(members[0].embedding.table, members[1].embedding.table)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("kind", JOINT_KINDS)
def test_joint_members_share_one_trained_embedding_and_score_like_any_model(kind: MemberKind, name: str) -> None:
    members = fitted(kind, name=name, epochs=1.0)
    first, *others = members
    start, batch = build_backbone(sizes(name), FIELDS, seed=0), random_batch(50)
    assert len(members) == 3
    assert bool((first.embedding.table != start.embedding.table).any(dim=1).sum() > 60)
    assert not torch.equal(first.embedding.extra_fill, start.embedding.extra_fill)
    assert not torch.equal(first.embedding.projections[0].weight, start.embedding.projections[0].weight)
    for member in others:
        assert member.embedding.table is first.embedding.table
        assert member.embedding.extra_fill is first.embedding.extra_fill
        assert member.embedding.projections is first.embedding.projections
        assert torch.equal(member.score(first.embed(batch))[:, 0], member(batch))
        assert float((member(batch) - first(batch)).detach().abs().max()) > 1e-3
    assert not any(member.training for member in members)
    assert set(first.state_dict()) == set(start.state_dict()) == set(others[0].state_dict())


@pytest.mark.parametrize("kind", [*JOINT_KINDS, "own"])
def test_members_learn_and_their_mean_beats_each_of_them_taken_alone(kind: MemberKind) -> None:
    members = fitted(kind)
    base = float(VALID.label.mean())
    entropy = -(base * np.log(base) + (1 - base) * np.log(1 - base))
    alone = [logloss_of([member]) for member in members]
    together = logloss_of(members)
    assert max(alone) < entropy - 0.05
    assert together < np.mean(alone) - 1e-5
    if kind == "own":
        assert together < min(alone)


@pytest.mark.parametrize("joint", JOINT.values())
def test_the_weights_kept_are_those_of_the_best_mean_logit(joint: type[SharedTables | RankOne]) -> None:
    config = CONFIG.model_copy(update={"rate": 0.2})  # so high that the last look is not the best
    model = joint(SIZES, FIELDS, count=3, seed=0)
    done = trained(model, config, epochs=6.0)
    assert done.best != done.curve[-1]
    assert done.best.valid_logloss == min(look.valid_logloss for look in done.curve)
    assert logloss_of(model.members()) == pytest.approx(done.best.valid_logloss, abs=1e-6)


@pytest.mark.parametrize("joint", JOINT.values())
def test_the_loss_is_the_mean_of_the_members_losses_and_a_batch_is_looked_up_once(
    joint: type[SharedTables | RankOne], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = joint(sizes("deepfm", 0.0), FIELDS, count=3, seed=0)
    lookups: list[int] = []
    embed = Backbone.embed

    def spy(self: Backbone, batch: Batch, table: torch.Tensor | None = None) -> torch.Tensor:
        lookups.append(len(batch))
        return embed(self, batch, table)

    monkeypatch.setattr(Backbone, "embed", spy)
    config = CONFIG.model_copy(update={"batch_size": 3000, "unknown_share": 0.0})
    with torch.no_grad():
        logits = model.each(TRAIN.batch(slice(None)))
    assert lookups == [3000]
    expected = np.mean([logloss(TRAIN.label, z.numpy()) for z in logits.T])
    done = trained(model, config, epochs=1.0)
    assert done.curve[0].train_logloss == pytest.approx(expected, abs=1e-5)
    assert lookups == [3000, 3000, 1000]  # the step and the look


@pytest.mark.parametrize("name", WITH_MLP)
def test_trunks_over_shared_tables_start_like_models_of_the_following_seeds(name: str) -> None:
    joint = SharedTables(sizes(name), FIELDS, count=3, seed=4)
    for place, member in enumerate(joint.members()):
        plain = build_backbone(sizes(name), FIELDS, seed=4 + place)
        assert torch.equal(member.out.weight, plain.out.weight)
        assert torch.equal(member.mlp[0].weight, plain.mlp[0].weight)
        assert torch.equal(member.embedding.table, build_backbone(sizes(name), FIELDS, seed=4).embedding.table)


@pytest.mark.parametrize("name", WITH_MLP)
def test_a_materialised_member_answers_like_the_shared_matrices_under_its_factors(name: str) -> None:
    joint = RankOne(sizes(name), FIELDS, count=3, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in [*joint.left, *joint.right, *joint.own]:
            value.add_(torch.randn(value.shape, generator=generator) * 0.3)
    batch = random_batch(100)
    joint.eval()
    for place, member in enumerate(joint.members()):
        torch.testing.assert_close(member(batch), joint.each(batch)[:, place], atol=1e-6, rtol=1e-6)
        number = joint.names.index("mlp.0.weight")
        factors = torch.outer(joint.left[number][place], joint.right[number][place])
        torch.testing.assert_close(member.mlp[0].weight, joint.base.mlp[0].weight * factors)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_under_factors_of_one_every_member_is_the_shared_model(name: str) -> None:
    joint = RankOne(sizes(name), FIELDS, count=2, seed=3)
    with torch.no_grad():
        for value in [*joint.left, *joint.right]:
            value.fill_(1.0)
    plain, batch = build_backbone(sizes(name), FIELDS, seed=3).eval(), random_batch(50)
    for member in joint.members():
        assert torch.equal(member(batch), plain(batch))


@pytest.mark.parametrize("name", DEEP)
def test_the_matrices_of_rank_one_members_differ_by_rank_one_and_their_biases_freely(name: str) -> None:
    first, second, _ = fitted("rank_one", name=name, epochs=1.0)
    own = [n for n, _ in first.trunk_parameters()]
    matrices = [n for n in own if first.get_parameter(n).dim() > 1]
    assert len(matrices) >= 2
    for name in own:
        a, b = first.get_parameter(name).detach(), second.get_parameter(name).detach()
        assert not torch.equal(a, b)
        if name in matrices:
            values = torch.linalg.svdvals((b / a).double())
            assert bool((values[..., 1:] < 1e-3 * values[..., :1]).all()), name


@pytest.mark.parametrize("joint", JOINT.values())
def test_joint_training_of_a_large_table_updates_only_the_rows_of_its_batches(
    joint: type[SharedTables | RankOne],
) -> None:
    model = joint(SIZES, FIELDS, count=2, seed=0)
    rows = random_rows(64)
    rows.ids[:, 0] = rows.ids[:, 0] % 5 + 1
    before = model.embedding.table.detach().clone()
    config = CONFIG.model_copy(update={"sparse_rows": 1, "unknown_share": 0.0})
    loader = BlockLoader(rows)
    train(model, Augmenter("none", rows, FIELDS, config), loader, loader, config, table_l2=1e-4, epochs=3.0, seed=0)
    moved = (model.embedding.table != before).any(dim=1)
    assert not bool(moved[6:40].any())
    assert bool(moved[1:6].all())
    assert not any(member.embedding.sparse_gradients for member in model.members())


@pytest.mark.parametrize("kind", JOINT_KINDS)
def test_the_seed_decides_every_bit_of_joint_members(kind: MemberKind) -> None:
    runs = [fitted(kind, seed=seed, epochs=0.5) for seed in (0, 0, 1)]
    states = [[value for member in run for value in member.state_dict().values()] for run in runs]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not torch.equal(runs[0][0].embedding.table, runs[2][0].embedding.table)


def test_a_member_is_stored_without_the_table_it_shares(tmp_path: Path) -> None:
    first, second = fitted("rank_one", count=2, epochs=0.5)
    write_model(tmp_path, second, ModelInfo(stage="finetuned"), with_table=False)
    loaded, _ = load_model(tmp_path, table=first.embedding.table)
    batch = random_batch(20)
    assert loaded.embedding.table is first.embedding.table
    assert torch.equal(loaded(batch), second(batch))
