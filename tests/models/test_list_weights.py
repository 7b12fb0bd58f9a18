"""Weights of the elements of lists: pooled as numpy says, and learned from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.lists_log import WEIGHED, cleaned, weighed_log
from tests.models.synthetic import WITH_WEIGHTS
from thinktwice.data.encoded import Batch, EncodedRows
from thinktwice.data.encoder import Encoder
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.errors import BundleError, DataError
from thinktwice.evaluate.findings.importance import Part, with_exchanged
from thinktwice.evaluate.findings.logistic import design
from thinktwice.models import BACKBONES, DeepFMConfig, backbone_config, build_backbone
from thinktwice.models.backbone import Backbone
from thinktwice.models.backends.backend import Backend, Eager
from thinktwice.models.backends.backend import random_rows as backend_rows
from thinktwice.models.backends.folded import Folded
from thinktwice.models.fields import FieldSpace
from thinktwice.models.store import load_model
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import Kind, pretrain
from thinktwice.schema import load_schema
from thinktwice.stats.metrics import auc
from thinktwice.train.checks import check_rows as check_encoded
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]

POOLED = st.lists(
    st.tuples(st.integers(0, 11), st.one_of(st.sampled_from([1.0, 1e-30, 1e-20, 0.5]), st.floats(1e-6, 1))),
    min_size=4,
    max_size=4,
)


@cache
def deepfm() -> Backbone:
    return build_backbone(DeepFMConfig(dim=4, hidden=(8,)), WITH_WEIGHTS, seed=3).eval()


@cache
def backends() -> tuple[Backend, Backend]:
    return Eager(deepfm(), None, deepfm().fill()), Folded(deepfm(), None, deepfm().fill())


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(POOLED, min_size=1, max_size=5), hidden=st.integers(0, 15))
@torch.inference_mode()
def test_the_vector_of_a_list_is_the_weighted_mean(rows: list[Any], hidden: int) -> None:
    model = deepfm()
    batch = backend_rows(model, len(rows))
    index = torch.tensor([[i for i, _ in row] for row in rows])
    index[:, [bool(hidden >> k & 1) for k in range(4)]] = 0  # as pre-training masks elements: their weights stay behind
    weights = torch.tensor([[w for _, w in row] for row in rows])
    batch = Batch(batch.ids, batch.sequences | {"tags": index}, batch.vectors, None, {"tags": weights})
    place = WITH_WEIGHTS.names.index("tags")
    found = model.embed(batch)[:, place].numpy()
    values, fill = model.embedding.sequences[1].values.numpy().astype(np.float64), model.embedding.extra_fill[1].numpy()
    for row in range(len(rows)):
        known = index[row].numpy() > 0
        w = weights[row].numpy().astype(np.float64)[known]
        mean = (w[:, None] * values[index[row].numpy()[known]]).sum(0) / w.sum() if known.any() else fill
        assert np.allclose(found[row], mean, rtol=2e-5, atol=1e-7)
    eager, folded = backends()
    assert torch.allclose(eager.logits(eager.read(batch)), folded.logits(folded.read(batch)), atol=1e-5)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@torch.inference_mode()
def test_only_ratios_of_weights_count_in_every_backbone(name: str) -> None:
    model = build_backbone(backbone_config(name=name, dim=4, hidden=(8,), init_sd=0.5), WITH_WEIGHTS, seed=1).eval()  # type: ignore[arg-type]
    batch = backend_rows(model, 60)

    def scores(weights: torch.Tensor) -> torch.Tensor:
        other = Batch(batch.ids, batch.sequences, batch.vectors, None, {"tags": weights})
        return model.score(model.embed(other))[:, 0]

    weights = batch.weights["tags"]
    several = ((batch.sequences["tags"] != 0).sum(1) > 1) & (batch.sequences["tags"].max(1).values > 0)
    assert torch.allclose(scores(weights), scores(weights * 0.25), atol=1e-5)
    assert ((scores(weights) - scores(torch.ones_like(weights))).abs()[several] > 1e-6).float().mean() > 0.7


def trained_set(folder: Path, rows: int = 2000) -> Path:
    """The click follows from which of the same two tags has the larger weight."""
    rng = np.random.default_rng(0)
    share = rng.random(rows)
    frame = weighed_log(rows).with_columns(
        y=pl.Series((share > 0.5).astype(np.int64)),
        item=pl.Series([f"i{n}" for n in rng.integers(0, 7, rows)]),
        moods=pl.Series([["a", "b"]] * rows),
        mood_weights=pl.Series([[s, 1 - s] for s in share]),
    )
    cleaned(frame, folder, WEIGHED)
    described = load_schema(folder / "clean" / "schema.yaml")
    build_training_set(training_rows(folder / "clean", described), described, folder / "set", SplitSpec(kind="time"))
    return folder / "set"


@pytest.fixture(scope="module")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_set(tmp_path_factory.mktemp("weighed"))


def test_a_model_learns_from_weights(weighed: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(
        batch_size=128,
        rate=0.02,
        table_l2=(1e-4,),
        augmentations=("none",),
        trial_epochs=1,
        epochs=6,
        checks_per_epoch=1,
    )
    finetune(weighed, tmp_path / "model", DeepFMConfig(dim=4, hidden=(8,)), config)
    model, _ = load_model(tmp_path / "model")
    assert model.fields.weighted == ("tags", "moods")
    test = load_training_set(weighed).part("test")
    with torch.inference_mode():
        batch = test.batch(slice(None))
        assert auc(test.label, model.score(model.embed(batch))[:, 0].numpy()) > 0.97
        bare = Batch(
            batch.ids, batch.sequences, batch.vectors, None, {k: torch.ones_like(v) for k, v in batch.weights.items()}
        )
        assert auc(test.label, model.score(model.embed(bare))[:, 0].numpy()) < 0.6


@pytest.mark.parametrize("kind", ["dgenctr", "hetegenctr"])
def test_lists_with_weights_are_pretrained(kind: Kind, weighed: Path, tmp_path: Path) -> None:
    pretrain(
        weighed, tmp_path / "p", DeepFMConfig(dim=4, hidden=(8,)), PretrainConfig(epochs=1, batch_size=512), kind=kind
    )
    model, _ = load_model(tmp_path / "p")
    assert model.fields.weighted == ("tags", "moods")
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_encoder_and_rows_survive_their_files(weighed: Path, tmp_path: Path) -> None:
    data = load_training_set(weighed)
    again = Encoder.load(weighed)
    table = data.rows("test").to_arrow()
    one, other = data.encoder.encode_table(table), again.encode_table(table)
    stored = data.part("test")
    assert sorted(stored.weights) == ["moods", "tags"]
    for name in stored.weights:
        assert (one.weights[name] == other.weights[name]).all() and (one.weights[name] == stored.weights[name]).all()
    stored.save(tmp_path / "rows")
    loaded = EncodedRows.load(tmp_path / "rows").take(slice(3, 9))
    assert (loaded.weights["moods"] == stored.weights["moods"][3:9]).all()
    fields = FieldSpace.of(data.schema, data.encoder)
    assert FieldSpace.model_validate_json(fields.model_dump_json()) == fields
    text = (weighed / "encoder.json").read_text()
    broken = json.loads(text)
    next(f for f in broken["fields"] if f["name"] == "item")["weights"] = "w"
    (tmp_path / "encoder.json").write_text(json.dumps(broken))
    (tmp_path / "vocabularies.arrow").write_bytes((weighed / "vocabularies.arrow").read_bytes())
    with pytest.raises(BundleError, match="'item' is not a list that may have weights"):
        Encoder.load(tmp_path)


def test_rows_without_positive_weights_are_not_trained_on(weighed: Path) -> None:
    data = load_training_set(weighed)
    fields, rows = FieldSpace.of(data.schema, data.encoder), data.part("train")
    check_encoded(rows, fields, "train")
    rows.weights["moods"][5, 0] = 0.0
    with pytest.raises(DataError, match="elements of 'moods' without a positive weight"):
        check_encoded(rows, fields, "train")


def test_findings_read_weights(weighed: Path) -> None:
    data = load_training_set(weighed)
    fields, rows = FieldSpace.of(data.schema, data.encoder), data.part("test")
    matrix = design(rows, fields)
    blocks = np.cumsum([sum(fields.num_values), *fields.list_values])
    moods = matrix[:, blocks[1] : blocks[2]].toarray()
    shares = rows.weights["moods"] / rows.weights["moods"].sum(axis=1, keepdims=True)
    expected = np.zeros_like(moods)
    np.put_along_axis(expected, rows.sequences["moods"][:, :2].astype(np.int64), shares[:, :2], axis=1)
    assert np.allclose(moods, expected) and moods.std(axis=0).max() > 0.1
    order = np.arange(len(rows))[::-1]
    turned = with_exchanged(rows, (Part("moods", "context"),), order)
    assert (turned.weights["moods"] == rows.weights["moods"][order]).all()
    assert (turned.weights["tags"] == rows.weights["tags"]).all()
