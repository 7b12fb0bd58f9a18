"""A recipe by name, by file and setting by setting; a mistake is one sentence with what was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipelines.arguments import RunArguments
from pipelines.check import checkpoints_place, chosen_recipe
from thinktwice import recipes
from thinktwice.choices import RecipeName
from thinktwice.errors import PipelineError, StorageError

PATHS = [
    f"{section}.{name}"
    for section, value in recipes.get("default")
    if isinstance(value, BaseModel)
    for name in type(value).model_fields
]


@pytest.mark.parametrize("name", get_args(RecipeName))
def test_a_recipe_survives_as_text(name: str) -> None:
    recipe = recipes.get(name)
    assert recipes.get(recipe.model_dump_json()) == recipe
    assert RunArguments(recipe=recipe.model_dump_json()).recipe == recipe.model_dump_json()


def test_a_file_changes_its_base(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: tiny\nmodel: {name: dcnv2, cross_layers: 3}\nfinetune:\n  rate: 2e-3\n  table_l2: 0.01\n")
    recipe = recipes.from_file(file)
    assert (recipe.model.name, recipe.model.dim, recipe.finetune.rate) == ("dcnv2", 4, 2e-3)
    assert recipe.finetune.table_l2 == (0.01,) and recipe.pretrain == recipes.get("tiny").pretrain
    chosen = chosen_recipe(str(file), "fm", "none", ["finetune.rate=0.5"])
    again = recipes.get(chosen["recipe"])
    assert (again.model.name, again.pretraining, again.finetune.rate, chosen["backbone"]) == ("fm", "none", 0.5, "")
    assert chosen_recipe("tiny", "lr", "", []) == {"recipe": "tiny", "backbone": "lr", "pretraining": ""}
    file.write_text("")
    assert recipes.from_file(file) == recipes.get("default")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.rat=3", "did you mean finetune.rate"),
        ("rate=3", "did you mean finetune.rate"),
        ("finetune.epoch=3", "did you mean finetune.epochs"),
        ("fintune.rate=3", "did you mean finetune.rate"),
        ("pretrain.tempratur=3", "did you mean pretrain.temperature"),
        ("zzz=3", "known are model, pretraining, pretrain, finetune, testtime"),
        ("model.cross_layers=3", "there is no setting 'model.cross_layers'"),  # of another backbone
        ("finetune.rate=-1", "finetune.rate: Input should be greater than 0"),
        ("finetune.rate=fast", "finetune.rate: Input should be a valid number"),
        ("finetune.rate=.nan", "finetune.rate: Input should be"),
        ("finetune.table_l2=[.inf]", "finetune.table_l2.0: Input should be a finite number"),
        ("finetune.table_l2=[-0.1]", "finetune.table_l2.0: Input should be greater than or equal to 0"),
        ("finetune.rate={", "cannot be read"),
        ("finetune=3", "finetune is a section"),
        ("finetune.rate", "has no value"),
        ("model.name=deepfn", "backbone 'deepfn' is unknown"),
        ("pretraining=gan", "'none', 'dgenctr' or 'hetegenctr', not 'gan'"),
        ("finetune.augmentations=[mask]", "'none', 'mask_block' or 'mask_loo'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(setting: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        recipes.resolved("tiny", settings=[setting])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@given(st.sampled_from(PATHS), st.data())
@settings(max_examples=60, deadline=None)
def test_a_slip_of_one_letter_finds_the_setting(path: str, data: st.DataObject) -> None:
    section, name = path.split(".")
    at = data.draw(st.integers(0, len(name) - 1))
    slip = f"{section}.{name[:at]}{name[at + 1 :]}"
    if len(name) < 4 or slip in PATHS:
        return
    with pytest.raises(PipelineError, match="did you mean"):
        recipes.resolved("default", settings=[f"{slip}=1"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("tinny", "did you mean tiny"),
        ("nothing", "choose one of default, dcnv2"),
        ("no/such/file.yaml", "cannot be read"),
        ("{base: tinny}", "the base 'tinny' is unknown"),
        ("{finetune: {rat: 1}}", "did you mean finetune.rate"),
        ("{finetune: 3}", "finetune is a section"),
        ("{a", "is not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(recipe: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        chosen_recipe(recipe, "", "", [])


def test_a_backbone_keeps_the_sizes_that_a_recipe_states() -> None:
    assert recipes.resolved("tiny", backbone="masknet").model.dim == 4
    assert recipes.resolved("default", backbone="lr").model.dim == 1  # its own
    assert recipes.resolved("tiny", backbone="deepfm") == recipes.get("tiny")
    assert json.loads(recipes.resolved("tiny", backbone="din").model_dump_json())["model"]["attention_hidden"] == [32]


def test_the_place_of_checkpoints_does_not_depend_on_the_folder_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoints_place("") == ""
    assert checkpoints_place("here") == str(tmp_path / "here")
    assert checkpoints_place("s3://bucket/a/") == "s3://bucket/a/"
    with pytest.raises(StorageError, match="ftp"):
        checkpoints_place("ftp://x/y")
