"""The weights of fields: each mode reaches its equilibrium, and the published one does the opposite of its claim."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.synthetic import FIELDS, random_rows
from thinktwice.models import DeepFMConfig, backbone_config
from thinktwice.models.hstu import HSTU
from thinktwice.pretrain.balance import BOUNDS, LIMIT, TAU, Balance
from thinktwice.pretrain.config import Balancing, PretrainConfig
from thinktwice.pretrain.pretrain import fit

LOSSES = st.lists(st.floats(0.05, 8.0), min_size=2, max_size=6)
ENTROPY = 2.0


def settled(mode: Balancing, losses: list[float], steps: int = 1500) -> Balance:
    """The balance after the same losses in every batch."""
    balance = Balance(mode, torch.full((len(losses),), ENTROPY))
    fixed, seen = torch.tensor(losses), torch.ones(len(losses), dtype=torch.bool)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        balance(fixed, seen).backward()
        optimizer.step()
    return balance


@given(LOSSES)
@settings(max_examples=8, deadline=None)
def test_kendall_reaches_the_published_equilibrium_where_hard_fields_weigh_less(losses: list[float]) -> None:
    balance = settled("kendall", losses)
    expected = [min(max(1 / (2 * loss), math.exp(-LIMIT)), math.exp(LIMIT)) for loss in losses]
    assert balance.weights().tolist() == pytest.approx(expected, rel=0.05)
    assert balance.equilibrium().tolist() == pytest.approx(expected, rel=1e-3)
    order = np.argsort(losses, kind="stable")
    assert (np.diff(balance.equilibrium().numpy()[order]) <= 1e-6).all()


@given(LOSSES)
@settings(max_examples=8, deadline=None)
def test_dro_gives_hard_fields_more_and_its_equilibrium_is_the_exponential_of_the_difficulty(
    losses: list[float],
) -> None:
    balance = settled("dro", losses)
    rho = np.array(losses) / ENTROPY
    share = np.exp((rho - rho.max()) / TAU)
    expected = np.clip(len(losses) * share / share.sum(), *BOUNDS)
    assert balance.weights().tolist() == pytest.approx(expected.tolist(), rel=0.1, abs=0.02)
    assert balance.equilibrium().tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    order = np.argsort(losses, kind="stable")
    assert (np.diff(balance.equilibrium().numpy()[order]) >= -1e-6).all()


def test_the_control_learns_nothing_and_divides_by_the_entropy() -> None:
    balance = Balance("uniform_norm", torch.tensor([2.0, 4.0]))
    loss = balance(torch.tensor([1.0, 1.0], requires_grad=True), torch.tensor([True, True]))
    assert float(loss.detach()) == pytest.approx((0.5 + 0.25) / 2)
    assert not balance.s.requires_grad and balance.weights().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("mode", get_args(Balancing))
def test_a_field_that_was_not_masked_or_has_one_value_or_no_number_does_no_harm(mode: Balancing) -> None:
    balance = Balance(mode, torch.tensor([0.0, 2.0, math.nan]))
    losses = torch.tensor([1e-6, 1.0, 1.0], requires_grad=True)
    total = balance(losses, torch.tensor([True, True, False]))
    total.backward()
    assert bool(total.isfinite()) and bool(losses.grad.isfinite().all()) and float(losses.grad[2]) == 0.0  # type: ignore[union-attr]
    assert bool(balance.difficulty().isfinite().all()) and bool(balance.equilibrium().isfinite().all())
    balance.observe(2, torch.tensor(3.0))
    balance.observe(2, torch.tensor(5.0))
    assert 3.0 < float(balance.entropy[2]) < 3.2


def test_a_field_that_does_not_move_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinktwice.pretrain.balance.PATIENCE", 10)
    balance = Balance("dro", torch.tensor([1.0, 1.0]))
    for step in range(41):
        balance(torch.tensor([1.0, 5.0 / (1 + step)]), torch.tensor([True, True]))
    assert balance.frozen.tolist() == [1.0, 0.0]
    balance(torch.tensor([1.0, 0.1]), torch.tensor([True, True])).backward()
    assert balance.s.grad is not None and float(balance.s.grad[0]) == 0.0 and float(balance.s.grad[1]) != 0.0


@pytest.mark.parametrize("mode", get_args(Balancing))
@pytest.mark.parametrize("name", ["deepfm", "hstu"])
def test_difficulties_are_recorded_and_guide_attention(name: str, mode: Balancing) -> None:
    config = PretrainConfig(batch_size=128, rate=2e-2, epochs=2.0, balancing=mode, full_softmax=35)
    backbone = backbone_config(name, dim=4, hidden=(8,), init_sd=0.1)
    rows = random_rows(1500)
    done = fit(rows, FIELDS, backbone, config, seed=1, kind="hetegenctr")
    assert set(done.difficulties) == set(FIELDS.names)  # the user's vocabulary is sampled
    assert all(math.isfinite(value) for each in done.difficulties.values() for value in each.values())
    weights = [done.difficulties[field]["weight"] for field in FIELDS.names]
    assert [point["weights"] for point in done.curve][-1] == dict(zip(FIELDS.names, weights, strict=True))
    assert (len(set(weights)) == 1) == (mode == "uniform_norm")
    model = done.denoiser.backbone
    if isinstance(model, HSTU):
        assert model.log_weights.exp().tolist() == pytest.approx(weights, rel=1e-4)
    if mode == "kendall":  # hard fields are to get less: the opposite of the claim
        end = np.array([done.difficulties[field]["equilibrium"] for field in ("item", "genre")])
        assert end[0] < end[1]
    plain = fit(rows, FIELDS, backbone, config, seed=1)
    assert plain.difficulties == {} and "weights" not in plain.curve[-1]
    assert not torch.equal(plain.denoiser.backbone.embedding.table, model.embedding.table)


def test_positives_and_negatives_have_distributions_of_their_own() -> None:
    rows = random_rows(6000)
    rows.ids[:, 2] = 1 + rows.label.astype(np.int32) * 3  # the genre says whether a row was clicked
    config = PretrainConfig(batch_size=256, rate=1e-2, epochs=4)
    found = fit(rows, FIELDS, DeepFMConfig(dim=8, hidden=(32,), init_sd=0.1), config).by_class
    for own, other in (("click", "no click"), ("no click", "click")):
        assert found[own][own] < found[own]["hidden"] < found[own][other]
    without = fit(
        rows, FIELDS, DeepFMConfig(dim=8, hidden=(32,), init_sd=0.1), config.model_copy(update={"ablation": "no_label"})
    )
    assert without.curve[-1]["label"] == 0.0
