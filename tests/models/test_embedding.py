"""The embedding is a part: shared as one object, with sequence encoders that can be replaced, and named on disk as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.models.synthetic import FIELDS, random_batch
from thinktwice.data.encoded import Batch
from thinktwice.models import (
    BACKBONES,
    BackboneConfig,
    DeepFMConfig,
    FieldSpace,
    ModelInfo,
    backbone_config,
    build_backbone,
    load_model,
    save_model,
)
from thinktwice.models.backends.backend import Eager
from thinktwice.models.backends.choose import suitable
from thinktwice.models.backends.folded import can_fold
from thinktwice.models.backends.lower import BFloat16
from thinktwice.models.config import CONFIGS
from thinktwice.models.deepfm import DeepFM
from thinktwice.models.sequences import MeanPooling, SequenceEncoder
from thinktwice.models.store import WEIGHTS_FILE

SIZES = DeepFMConfig(dim=4, hidden=(8,), init_sd=0.2)


def sizes(name: str) -> BackboneConfig:
    """The same for another backbone."""
    return backbone_config(name, **SIZES.model_dump(exclude={"name"}))


STORED = {"table", "extra_fill", "projections.0.weight", "projections.0.bias", "bias"}


class TargetAttention(SequenceEncoder):
    """Values weighed by their likeness to the row's own value of the same column."""

    def __init__(self, fields: FieldSpace, name: str, width: int) -> None:
        super().__init__(fields, name)
        self.position = fields.columns.index(fields.sequence_of[fields.sequences.index(name)])
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, batch: Batch, columns: Tensor, table: Tensor, *, sparse: bool) -> Tensor:
        index = batch.sequences[self.name]
        values = nn.functional.embedding(index + self.first_row, table, sparse=sparse)
        likeness = torch.einsum("bld,de,be->bl", values, self.weight, columns[:, self.position])
        share = likeness.masked_fill(index == 0, -torch.inf).softmax(dim=1)
        return torch.einsum("bl,bld->bd", share, values)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_files_name_the_embedding_without_its_prefix(name: str, tmp_path: Path) -> None:
    model = build_backbone(sizes(name), FIELDS)
    save_model(tmp_path / "model", model, ModelInfo(stage="finetuned"))
    stored = load_file(str(tmp_path / "model" / WEIGHTS_FILE))
    assert stored.keys() >= STORED
    assert not any("embedding" in key for key in stored)
    loaded, _ = load_model(tmp_path / "model")
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("taken", ["table", "extra_fill", "projections"])
def test_a_backbone_must_not_use_a_name_that_files_keep_for_the_embedding(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Taken(DeepFM):
        def __init__(self, config: BackboneConfig, fields: FieldSpace) -> None:
            super().__init__(config, fields)
            if taken == "projections":
                self.projections = nn.ModuleList([nn.Linear(2, 2)])
            else:
                setattr(self, taken, nn.Parameter(torch.zeros(2)))

    monkeypatch.setitem(BACKBONES, "taken", Taken)
    monkeypatch.setitem(CONFIGS, "taken", BackboneConfig)
    with pytest.raises(ValueError, match=f"'taken' has a part of its own named '{taken}"):
        build_backbone(backbone_config(name="taken"), FIELDS)


def test_a_sequence_encoder_of_another_kind_needs_no_change_elsewhere() -> None:
    model = build_backbone(SIZES, FIELDS, seed=3)
    plain = build_backbone(SIZES, FIELDS, seed=3)
    assert isinstance(model.embedding.sequences[0], MeanPooling)
    model.embedding.sequences[0] = TargetAttention(FIELDS, "history", SIZES.dim + 1)
    batch = random_batch(30)
    x, mean = model.embed(batch), plain.embed(batch)
    position, empty = FIELDS.names.index("history"), (batch.sequences["history"] == 0).all(dim=1)
    assert bool(empty.any())
    assert torch.equal(x[empty], mean[empty]), "an empty sequence is the learned vector whatever the encoder"
    others = [n for n in range(FIELDS.num_fields) if n != position]
    assert torch.equal(x[:, others], mean[:, others])
    single = (batch.sequences["history"] != 0).sum(dim=1) == 1
    torch.testing.assert_close(x[single], mean[single])  # one value leaves nothing to weigh
    assert not torch.allclose(x[~empty & ~single, position], mean[~empty & ~single, position])
    model(batch).sum().backward()
    weight = dict(model.named_parameters())["embedding.sequences.0.weight"]
    assert weight.grad is not None and bool(weight.grad.isfinite().all())


def test_only_means_can_be_folded() -> None:
    model = build_backbone(SIZES, FIELDS)
    assert can_fold(model)
    model.embedding.sequences[0] = TargetAttention(FIELDS, "history", SIZES.dim + 1)
    assert not can_fold(model)
    assert "folded" not in suitable(model, bfloat16=False)


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"lr", "fm"}))  # these have no weights outside of it
def test_models_share_an_embedding_as_one_object(name: str) -> None:
    config = sizes(name)
    model, other = build_backbone(config, FIELDS, seed=1).eval(), build_backbone(config, FIELDS, seed=2).eval()
    trunk = {key: value.detach().clone() for key, value in other.trunk_parameters()}
    other.embedding = model.embedding
    batch = random_batch(20)
    assert torch.equal(other.embed(batch), model.embed(batch))
    assert all(torch.equal(trunk[key], value) for key, value in other.trunk_parameters())
    assert not any(key.startswith("embedding") for key in trunk)
    assert not torch.equal(other(batch), model(batch))


def test_a_backend_in_bfloat16_leaves_the_embedding_of_its_model_as_it_is() -> None:
    model = build_backbone(sizes("dcnv2"), FIELDS).eval()
    fill, batch = model.fill().detach(), random_batch(20)
    eager = Eager(model, None, fill)
    with torch.inference_mode():
        before = eager.read(batch)[0]
        lowered = BFloat16(model, None, fill)
        assert torch.equal(eager.read(batch)[0], before)
        assert torch.equal(lowered.read(batch)[0], before)
        assert not torch.equal(lowered.dense(before), eager.dense(before))
    assert all(value.dtype == torch.float32 for value in model.parameters())
