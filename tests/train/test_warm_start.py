"""Training that continues an earlier model: old values keep their vectors, and what does not fit is refused by what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.data.training_set import load_training_set
from thinktwice.data.warm_start import Start
from thinktwice.errors import DataError
from thinktwice.files import sha256_file
from thinktwice.models import FieldSpace, ModelInfo, build_backbone, load_model, save_model
from thinktwice.models.config import backbone_config
from thinktwice.pretrain.pretrain import pretrain
from thinktwice.train.finetune import finetune
from thinktwice.train.unread import unread_rows
from thinktwice.train.warm_start import continued_model

TINY = recipes.resolved("tiny", settings=["finetune.table_l2=[0.1]", "finetune.augmentations=[none]"])
FILES = ("encoder.json", "vocabularies.arrow", "model.json", "weights.safetensors")
BACKBONES = ("lr", "fm", "deepfm", "dcnv2", "autoint", "masknet", "finalmlp", "din", "hstu")


def earlier(folder: Path, backbone: Any = TINY.model, **log: Any) -> Start:
    """A model with random weights on a log, and its encoder, in one folder."""
    data = load_training_set(build_small(folder / "training_set", **log))
    model = build_backbone(backbone, FieldSpace.of(data.schema, data.encoder), seed=7)
    save_model(folder / "model", model, ModelInfo(stage="finetuned"))
    data.encoder.save(folder / "model")
    return Start(folder / "model", FILES)


def rows_of(values: tuple[str, ...], data: Any, model: Any, field: str) -> np.ndarray:
    """The vectors of values of a column."""
    first = model.fields.offsets[model.fields.columns.index(field)]
    index = [first + data.encoder.index_of(field, value) for value in values]
    return np.asarray(model.embedding.table.detach()[index])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    return earlier(tmp_path_factory.mktemp("earlier"), rows=900)


@pytest.fixture(scope="module")
def later(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A later log with other users and items, of which some are those of before."""
    return build_small(tmp_path_factory.mktemp("later") / "training_set", rows=900, seed=1, shift=25, start=start)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_scores_known_values_as_before(name: str, tmp_path: Path) -> None:
    config = backbone_config(name, dim=4)
    begin = earlier(tmp_path / "before", config, rows=300)
    data = load_training_set(build_small(tmp_path / "set", rows=300, seed=1, shift=25, start=begin))
    fields = FieldSpace.of(data.schema, data.encoder)
    model = continued_model(data, fields, config, seed=3)
    before, _ = load_model(begin.folder)
    assert model is not None and model.fields.num_values > before.fields.num_values
    old = load_training_set(tmp_path / "before" / "training_set")
    table = old.rows("train").to_arrow()
    with torch.no_grad():
        now, then = (
            one.score(one.embed(encoder.encode_table(table).batch(slice(None))))
            for one, encoder in ((model, data.encoder), (before, begin.encoder()))
        )
    torch.testing.assert_close(now, then)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.integers(0, 60))
def test_old_values_keep_their_vectors_over_any_logs(
    seed: int, shift: int, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    data = load_training_set(build_small(folder / "set", rows=120, seed=seed, shift=shift, start=start))
    fields = FieldSpace.of(data.schema, data.encoder)
    model = continued_model(data, fields, TINY.model, seed=seed)
    before, _ = load_model(start.folder)
    assert model is not None and data.encoder.continues(start.encoder())
    for field in ("user_id", "item_id", "genre"):
        known = start.encoder().values_of(field)
        unknown = before.fill()[before.fields.columns.index(field)].detach().numpy()
        old = load_training_set(start.folder.parent / "training_set")
        np.testing.assert_array_equal(rows_of(known, data, model, field), rows_of(known, old, before, field))
        for vector in rows_of(data.encoder.values_of(field)[len(known) :], data, model, field):
            np.testing.assert_array_equal(vector, unknown)


def test_a_continued_training_is_deterministic_and_leaves_what_it_does_not_read(later: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        record = finetune(later, tmp_path / name, TINY.model, TINY.finetune, seed=2)
        assert record.init == "continued"
    assert sha256_file(tmp_path / "a/weights.safetensors") == sha256_file(tmp_path / "b/weights.safetensors")
    data, (model, info) = load_training_set(later), load_model(tmp_path / "a")
    assert info.provenance["init"] == "continued"
    first = continued_model(data, FieldSpace.of(data.schema, data.encoder), TINY.model, seed=2)
    assert first is not None
    (rows, values) = unread_rows(first, data.part("train")).by_name["embedding.table"]
    assert 0 < len(rows) < len(first.embedding.table)
    assert torch.equal(model.embedding.table[rows], values)
    read = torch.ones(len(first.embedding.table), dtype=torch.bool)
    read[rows] = False
    moved = (model.embedding.table != first.embedding.table).any(dim=1)
    assert bool(moved[read].all()) and not bool(moved[rows].any())


def test_pre_training_continues_too(later: Path, tmp_path: Path) -> None:
    pretrain(later, tmp_path / "trunk", TINY.model, TINY.pretrain, seed=2)
    data = load_training_set(later)
    first = continued_model(data, FieldSpace.of(data.schema, data.encoder), TINY.model, seed=2)
    assert first is not None
    unread = unread_rows(first, data.part("train")).by_name["embedding.table"]
    record = finetune(later, tmp_path / "model", TINY.model, TINY.finetune, seed=2, init_dir=tmp_path / "trunk")
    assert record.init == "pretrained"
    for name in ("trunk", "model"):
        assert torch.equal(load_model(tmp_path / name)[0].embedding.table[unread[0]], unread[1])


def test_values_of_lists_keep_their_vectors(tmp_path: Path) -> None:
    config = backbone_config("deepfm", dim=4)
    begin = earlier(tmp_path / "before", config, rows=300, tags=True)
    data = load_training_set(build_small(tmp_path / "set", rows=300, seed=1, shift=25, tags=True, start=begin))
    model = continued_model(data, FieldSpace.of(data.schema, data.encoder), config, seed=3)
    before, _ = load_model(begin.folder)
    assert model is not None
    name = f"embedding.sequences.{model.fields.sequences.index('tags')}.values"
    old, now = before.state_dict()[name], model.state_dict()[name]
    assert len(now) > len(old) and torch.equal(now[: len(old)], old)
    (rows, values) = unread_rows(model, data.part("train")).by_name[name]
    assert len(rows) and 0 not in rows and torch.equal(values, now[rows])
    finetune(tmp_path / "set", tmp_path / "model", config, TINY.finetune)
    trained = load_model(tmp_path / "model")[0].state_dict()[name]
    assert torch.equal(trained[rows], values) and not torch.equal(trained, now)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model.dim=3"], r"\(dim is {dim} and not 3\)"),
        (["model.hidden=[5]"], r"\(hidden is .* and not \(5,\)\)"),
        (["model.name=dcnv2"], r"\({name} and not dcnv2\)"),
        (["model.dropout=0.3", "model.init_sd=0.2"], ""),
    ],
)
def test_another_backbone_is_refused_by_what_differs(changes: list[str], words: str, later: Path) -> None:
    data = load_training_set(later)
    fields = FieldSpace.of(data.schema, data.encoder)
    wanted = recipes.resolved("tiny", settings=changes).model
    if not words:
        model = continued_model(data, fields, wanted, seed=0)
        assert model is not None and model.config == wanted
        return
    found = "has another backbone than the recipe " + words.format(dim=TINY.model.dim, name=TINY.model.name)
    with pytest.raises(DataError, match=found):
        continued_model(data, fields, wanted, seed=0)


def test_weights_of_other_values_are_refused(later: Path, tmp_path: Path) -> None:
    other = earlier(tmp_path / "other", rows=300, seed=5, shift=3)
    data = load_training_set(later)
    for name in FILES:
        (data.folder / "start" / name).rename(tmp_path / name)
        (data.folder / "start" / name).write_bytes((other.folder / name).read_bytes())
    try:
        with pytest.raises(DataError, match="does not continue the model in it: build the training set again"):
            continued_model(data, FieldSpace.of(data.schema, data.encoder), TINY.model, seed=0)
    finally:
        for name in FILES:
            (tmp_path / name).rename(data.folder / "start" / name)


def test_a_training_set_without_a_start_begins_from_scratch(tmp_path: Path) -> None:
    data = load_training_set(build_small(tmp_path / "set", rows=200))
    assert data.start is None and data.continued == ""
    assert continued_model(data, FieldSpace.of(data.schema, data.encoder), TINY.model, seed=0) is None
