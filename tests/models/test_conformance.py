"""The conformance suite: every backbone keeps the contract on every field space, and a class that breaks a rule is found."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.synthetic import FIELDS, random_batch
from tests.models.test_counters import BARE, SPACE
from thinktwice.data.encoded import Batch
from thinktwice.models import BACKBONES, FieldSpace, backbone_config
from thinktwice.models.config import CONFIGS, BackboneConfig
from thinktwice.models.conformance import broken_rules
from thinktwice.models.deepfm import DeepFM
from thinktwice.models.din import DIN
from thinktwice.models.masknet import MaskNet
from thinktwice.models.registry import build_backbone

NAMES = sorted(BACKBONES)
CONTEXT = FieldSpace(  # no user, no item: a gate reads a constant
    names=("a", "b"), kinds=("categorical",) * 2, entities=("context",) * 2, protected=(False,) * 2, num_values=(50, 7)
)


def config_of(name: str, **options: Any) -> BackboneConfig:
    return backbone_config(name, dim=4, init_sd=0.5, **options)


@pytest.mark.parametrize("space", [FIELDS, SPACE, BARE, CONTEXT], ids=["all kinds", "counters", "one field", "context"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_keeps_the_contract(name: str, hidden: tuple[int, ...], space: FieldSpace) -> None:
    assert broken_rules(config_of(name, hidden=hidden), space) == []


def test_every_backbone_has_its_options_and_its_page() -> None:
    assert (
        set(CONFIGS) == set(NAMES) == {"lr", "fm", "deepfm", "dcnv2", "autoint", "masknet", "finalmlp", "din", "hstu"}
    )
    for name, kind in BACKBONES.items():
        text = " ".join((kind.__doc__ or "").split())
        assert kind.config_class is CONFIGS[name]
        assert "We differ in" in text and "Hidden state: [" in text and re.search(r"(19|20)\d\d", text), name


@given(
    options=st.sampled_from(
        [
            ("masknet", {"mask_blocks": 1, "block_width": 1}),
            ("masknet", {"mask_blocks": 5, "reduction": 0.01}),
            ("finalmlp", {"fusion_heads": 3, "hidden": (8, 6)}),
            ("finalmlp", {"fusion_heads": 5, "hidden": (8, 6)}),
            ("finalmlp", {"gate_width": 1}),
            ("din", {"attention_hidden": ()}),
            ("din", {"attention_hidden": (3, 2)}),
            ("lr", {"dim": 1}),
            ("dcnv2", {"cross_layers": 3}),
        ]
    ),
    seed=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_options_keep_the_contract(options: tuple[str, dict[str, Any]], seed: int) -> None:
    name, own = options
    assert broken_rules(backbone_config(name, **{"dim": 4, "init_sd": 0.5, **own}), FIELDS, seed=seed) == []


class _Wrong(DeepFM):
    fault = ""

    def trunk(self, x_masked: Tensor) -> Tensor:
        hidden = super().trunk(x_masked)
        if self.fault == "rows":
            return hidden + hidden.mean(dim=0)
        if self.fault == "order":
            return hidden.flip(1)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        return hidden[:, -1] if self.fault == "gradient" else super().head(hidden)

    def score(self, x: Tensor, mask: Tensor | None = None, fill: Tensor | None = None) -> Tensor:
        if self.fault == "mask" and mask is not None:
            mask = torch.ones_like(mask)
        return super().score(x, mask, fill)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("rows", "rows do not see each other"),
        ("order", "the last number of a hidden state is the sum of first-order weights"),
        ("gradient", "every parameter of the trunk has a gradient"),
        ("mask", "a mask forgets its field and nothing else"),
    ],
)
def test_a_class_that_breaks_a_rule_is_found(fault: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "deepfm", type("Wrong", (_Wrong,), {"fault": fault}))
    assert rule in broken_rules(config_of("deepfm", hidden=(8,)), FIELDS)


def test_attention_weighs_a_history_by_the_item_to_be_scored() -> None:
    model = build_backbone(config_of("din", hidden=(8,)), FIELDS, seed=1).eval()
    assert isinstance(model, DIN) and model.protected == (False, True, False, True, True, True)
    batch = random_batch(1)
    history = torch.tensor([[3, 7, 0, 0, 0]])

    def sequence(item: int, values: Tensor) -> Tensor:
        ids = batch.ids.clone()
        ids[0, 1] = item
        return model.embed(Batch(ids, {"history": values}, batch.vectors))[0, 4]

    one, other = sequence(3, history), sequence(9, history)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(one, sequence(3, history.flip(1).roll(2, 1)))  # order and padding do not matter
    alone = [sequence(3, torch.tensor([[v, 0, 0, 0, 0]])) for v in (3, 7)]
    torch.testing.assert_close(one, alone[0] + alone[1])  # weights are not normalised
    first, table = FIELDS.offsets[1], model.embedding.table
    ratio = alone[1] / table[first + 7]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-4)  # one weight per value


def test_masks_of_masknet_depend_on_the_row() -> None:
    model = build_backbone(config_of("masknet", hidden=(8,)), FIELDS, seed=1)
    assert isinstance(model, MaskNet)
    flat = torch.randn(6, 24)
    block: Any = model.blocks[0]
    one = block(flat, torch.ones(6, 24))
    assert one.std(dim=0).max() > 0.01
