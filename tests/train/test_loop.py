"""One loop trains everything: it gives the weights of a loop written out with torch's own optimizer, and stops at a loss that is
not a number."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.optim import Adam

from tests.models.synthetic import FIELDS, random_rows
from thinktwice.errors import TrainingError
from thinktwice.models import BACKBONES, Backbone, BackboneConfig, backbone_config, build_backbone
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.denoiser import Denoiser
from thinktwice.pretrain.losses import denoising_loss
from thinktwice.pretrain.pretrain import fit as fit_pretrained
from thinktwice.pretrain.pretrain import log_shares
from thinktwice.threads import reproducible
from thinktwice.train.augment import Augmenter
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.loader import BlockLoader
from thinktwice.train.loop import Bar, LoopPlan, Steps, run_loop
from thinktwice.train.run import rate_factor, train

TRAIN = random_rows(700, 1)
FINETUNE = FinetuneConfig(batch_size=128, rate=1e-2, checks_per_epoch=1, epochs=2.0)
PRETRAIN = PretrainConfig(batch_size=128, full_softmax=32, negatives=20, epochs=2.0)


def sizes(name: str) -> BackboneConfig:
    return backbone_config(name=name, dim=4, hidden=(16,), dropout=0.1, init_sd=0.1)


def adam(model: torch.nn.Module, table: torch.nn.Parameter, rate: float, l2: float) -> Adam:
    others = [p for p in model.parameters() if p is not table and p.numel()]
    return Adam([{"params": others}, {"params": [table], "weight_decay": l2}], lr=rate, fused=True)


def same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    state = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, state[name]), name


@reproducible()
def finetuned_plainly(model: Backbone, augmenter: Augmenter, seed: int) -> Backbone:
    """Two epochs of fine-tuning, written out; the last weights."""
    rows, generator = BlockLoader(TRAIN), torch.Generator().manual_seed(seed)
    per_epoch = len(TRAIN) // 128
    optimizer = adam(model, model.embedding.table, 1e-2, 1e-4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        for step in range(2 * per_epoch):
            if step % per_epoch == 0:
                order = torch.randperm(len(TRAIN), generator=generator)
            index = order[step % per_epoch * 128 :][:128]
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * rate_factor((step + 0.5) / (2 * per_epoch), FINETUNE.warmup)
            optimizer.zero_grad()
            logit = model(augmenter(rows.batch(index), index, generator))
            F.binary_cross_entropy_with_logits(logit, rows.label[index]).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the loop would train on the GPU")
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_fine_tuning_gives_the_bits_of_a_loop_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0, 0.5])
    monkeypatch.setattr("thinktwice.train.run.logloss", lambda *_: next(values))  # the last evaluation is the best
    augmenter = Augmenter("mask_block", TRAIN, FIELDS, FINETUNE)
    model = build_backbone(sizes(name), FIELDS, seed=4)
    loader = BlockLoader(TRAIN)
    done = train(model, augmenter, loader, loader, FINETUNE, table_l2=1e-4, epochs=2.0, seed=4)
    assert done.best is done.curve[-1] and len(done.curve) == 2
    same(model, finetuned_plainly(build_backbone(sizes(name), FIELDS, seed=4), augmenter, 4))


@reproducible()
def pretrained_plainly(name: str, seed: int) -> Denoiser:
    """Two epochs of pre-training, written out."""
    rows, generator = BlockLoader(TRAIN), torch.Generator().manual_seed(seed)
    per_epoch = len(TRAIN) // 128
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(sizes(name), FIELDS, seed=seed)
        model = Denoiser(backbone, PRETRAIN, log_shares(TRAIN, FIELDS))
        optimizer = adam(model, backbone.embedding.table, PRETRAIN.rate, PRETRAIN.table_l2)
        for step in range(2 * per_epoch):
            if step % per_epoch == 0:
                order = torch.randperm(len(TRAIN), generator=generator)
            index = order[step % per_epoch * 128 :][:128]
            optimizer.zero_grad()
            denoising_loss(model, rows.batch(index), rows.label[index], generator).total.backward()
            optimizer.step()
    return model.eval()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the loop would train on the GPU")
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_pre_training_gives_the_bits_of_a_loop_written_out(name: str) -> None:
    done = fit_pretrained(TRAIN, FIELDS, sizes(name), PRETRAIN, seed=4)
    assert [point["epoch"] for point in done.curve][-1] == 2.0
    same(done.denoiser, pretrained_plainly(name, 4))


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 5.0))
def test_a_run_has_the_steps_of_its_epochs(rows: int, batch_size: int, epochs: float) -> None:
    steps = Steps.of(rows, batch_size, epochs)
    assert 1 <= steps.size <= min(rows, batch_size)
    assert steps.per_epoch * steps.size <= rows < (steps.per_epoch + 1) * steps.size
    assert epochs * steps.per_epoch <= steps.total < epochs * steps.per_epoch + 1


def looped(
    losses: list[float], eval_every: int, sparse: bool = False, bar: Bar | None = None
) -> tuple[Backbone, list[tuple[float, float]]]:
    """A run of one step per loss, whose loss is that number and pulls at every parameter; its evaluations."""
    model, seen = build_backbone(sizes("deepfm"), FIELDS), iter(losses)
    evaluations: list[tuple[float, float]] = []

    def loss(index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert model.training and len(index) == 10
        logit = model(BlockLoader(TRAIN).batch(index)).mean()
        return logit - logit.detach() + next(seen)

    plan = LoopPlan(Steps(10, 4, len(losses)), eval_every, 1e-2, 1e-4, 1 if sparse else 10**9)
    try:
        run_loop(
            model,
            model.embedding,
            BlockLoader(TRAIN),
            loss,
            plan,
            seed=0,
            on_eval=lambda *point: evaluations.append(point),
            bar=bar,
        )
    finally:
        assert not model.training and not model.embedding.sparse_gradients
    return model, evaluations


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-4.0, 4.0, width=32), min_size=1, max_size=12), st.integers(1, 5))
def test_every_step_counts_in_one_evaluation(losses: list[float], eval_every: int) -> None:
    _, evaluations = looped(losses, eval_every)
    ends = sorted({*range(eval_every, len(losses) + 1, eval_every), len(losses)})
    assert [epoch for epoch, _ in evaluations] == [end / 4 for end in ends]
    starts = [0, *ends[:-1]]
    means = [np.mean(losses[start:end]) for start, end in zip(starts, ends, strict=True)]
    assert [mean for _, mean in evaluations] == pytest.approx(means, abs=1e-4)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_the_weights(value: float, sparse: bool) -> None:
    kept: list[Backbone] = []

    def watched(losses: list[float]) -> None:
        kept.append(looped(losses, 10, sparse)[0])

    with pytest.raises(
        TrainingError, match=rf"loss is {value} in step 3 of 4 at the rate 0.01: lower the rate, or rescale vectors"
    ):
        watched([0.5, 0.5, value, 0.5])
    watched([0.5, 0.5])
    assert all(bool(p.isfinite().all()) for p in kept[0].parameters())


def test_steps_are_reported_where_somebody_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKTWICE_PROGRESS", str(tmp_path / "events"))
    looped([0.1] * 3, 2, bar=Bar("finetune", "plain, trial 1/2"))
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert events[-1] | {"at": 0} == {
        "at": 0,
        "stage": "finetune",
        "event": "progress",
        "done": 3,
        "total": 3,
        "label": "plain, trial 1/2",
    }
    (tmp_path / "events").unlink()
    looped([0.1] * 3, 2)
    assert not (tmp_path / "events").exists()


def test_vectors_of_very_large_numbers_end_training_with_an_error() -> None:
    rows = random_rows(300, 3)
    rows.vectors["image"][:] = 3e38
    loader = BlockLoader(rows)
    model = build_backbone(sizes("dcnv2"), FIELDS)
    augmenter = Augmenter("none", rows, FIELDS, FINETUNE)
    with pytest.raises(TrainingError, match="rescale vectors"):
        train(model, augmenter, loader, loader, FINETUNE, table_l2=0.0, epochs=1.0, seed=0)
    with pytest.raises(TrainingError, match="in step 1 of"):
        fit_pretrained(rows, FIELDS, sizes("dcnv2"), PRETRAIN)
