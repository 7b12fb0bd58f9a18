from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.synthetic import FIELDS, random_batch
from thinktwice.errors import BundleError
from thinktwice.files import read_json, write_json
from thinktwice.models import (
    BACKBONES,
    Calibration,
    DeepFMConfig,
    ModelInfo,
    backbone_config,
    build_backbone,
    load_model,
    save_model,
)

INFO = ModelInfo(stage="finetuned", calibration=Calibration(a=0.9, b=-0.1), provenance={"seed": 3})


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_saved_model_scores_the_same_bits(name: str, tmp_path: Path) -> None:
    model = build_backbone(backbone_config(name=name, dim=4, hidden=(8,)), FIELDS, seed=5).eval()
    save_model(tmp_path / "model", model, INFO)
    loaded, info = load_model(tmp_path / "model")
    batch = random_batch(20)
    with torch.inference_mode():
        assert torch.equal(model(batch), loaded(batch))
    assert info == INFO
    assert loaded.config == model.config
    assert loaded.fields == FIELDS
    assert not loaded.training
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    model = build_backbone(DeepFMConfig(dim=4, hidden=(8,)), FIELDS)
    save_model(tmp_path / "model", model, INFO)
    weights = tmp_path / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"cannot be read.*train it again"):
        load_model(tmp_path / "model")
    with pytest.raises(BundleError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "a", build_backbone(DeepFMConfig(dim=4, hidden=(8,)), FIELDS), INFO)
    save_model(tmp_path / "b", build_backbone(DeepFMConfig(dim=6, hidden=(8,)), FIELDS), INFO)
    (tmp_path / "b" / "weights.safetensors").replace(tmp_path / "a" / "weights.safetensors")
    with pytest.raises(BundleError, match=r"contains 'extra_fill' with the shape \(2, 7\) instead of \(2, 5\)"):
        load_model(tmp_path / "a")


@pytest.mark.parametrize("key", ["entities", "protected"])
def test_a_model_that_does_not_describe_its_fields_whole_is_refused(key: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", build_backbone(DeepFMConfig(dim=4, hidden=(8,)), FIELDS), INFO)
    whole = read_json(tmp_path / "model" / "model.json")
    for fields in (
        {k: v for k, v in whole["fields"].items() if k != key},
        whole["fields"] | {key: whole["fields"][key][1:]},
    ):
        write_json(tmp_path / "model" / "model.json", whole | {"fields": fields})
        with pytest.raises(BundleError, match="train it again"):
            load_model(tmp_path / "model")
