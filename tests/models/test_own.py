"""A backbone of your own by ``package.module:Class``: trained by its name, opened where its class is trusted, never by a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.errors import BundleError, PipelineError
from thinktwice.files import read_json, write_json
from thinktwice.models import BACKBONES, load_model
from thinktwice.models.config import CONFIGS, OWN
from thinktwice.models.own import VARIABLE
from thinktwice.train.finetune import finetune

SOURCE = """
from typing import Literal
from thinktwice.models import BackboneConfig
from thinktwice.models.deepfm import DeepFM

class MineConfig(BackboneConfig):
    name: Literal["mine"] = "mine"
    gain: float = 1.0

class Mine(DeepFM):
    config_class = MineConfig

    def head(self, hidden):
        return self.config.gain * super().head(hidden)

class Nameless(DeepFM):
    pass

class Taken(DeepFM):
    pass

NOTHING = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "code" / "mine_package").mkdir(parents=True)
    (tmp_path / "code" / "mine_package" / "__init__.py").touch()
    (tmp_path / "code" / "mine_package" / "models.py").write_text(SOURCE)
    (tmp_path / "code" / "mine_package" / "broken.py").write_text("raise RuntimeError('no license')\n")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delenv(VARIABLE, raising=False)
    yield "mine_package.models"
    for registered in (BACKBONES, CONFIGS, OWN):
        registered.pop("mine", None)  # type: ignore[attr-defined]
    for name in [n for n in sys.modules if n.startswith("mine_package")]:
        del sys.modules[name]


def test_it_is_trained_by_its_name_and_opened_where_it_is_trusted(package: str, tmp_path: Path) -> None:
    recipe = recipes.resolved("tiny", backbone=f"{package}:Mine", settings=["model.gain=0.5", "finetune.epochs=0.2"])
    assert (recipe.model.name, recipe.model.dim, recipe.model.model_dump()["gain"]) == ("mine", 4, 0.5)
    data = build_small(tmp_path / "set", rows=600)
    finetune(data, tmp_path / "model", recipe.model, recipe.finetune)
    assert read_json(tmp_path / "model" / "model.json")["backbone"]["name"] == "mine"  # no module: a file names no code
    open_it = "import sys; from thinktwice.models import load_model\nprint(type(load_model(sys.argv[1])[0]).__name__)"

    def opened(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "code"), *sys.path]), **variables}
        command = [sys.executable, "-c", open_it, str(tmp_path / "model")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert opened(**{VARIABLE: f"{package}:Mine"}).stdout == "Mine\n"
    refused = opened()
    assert refused.returncode != 0 and "'mine' is unknown" in refused.stderr and VARIABLE in refused.stderr


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine_package.models:Missing", "cannot be imported"),
        ("no_such_package:Mine", "cannot be imported"),
        ("mine_package.broken:Mine", "no license"),
        ("mine_package.models:NOTHING", "not a subclass"),
        ("mine_package.models:Nameless", "exists already"),
        ("os:system", "not a subclass"),
        (":Mine", "not of the form"),
        ("mine_package.models:", "not of the form"),
        ("mine_package models:Mine", "not of the form"),
        ("a:b:c", "not of the form"),
    ],
)
def test_what_is_no_backbone_is_refused(package: str, reference: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        recipes.resolved("tiny", backbone=reference)


def test_a_file_never_imports_a_class(package: str, tmp_path: Path) -> None:
    recipe = recipes.get("tiny")
    finetune(build_small(tmp_path / "set", rows=600), tmp_path / "model", recipe.model, recipe.finetune)
    described = read_json(tmp_path / "model" / "model.json")
    described["backbone"]["name"] = f"{package}:Mine"
    write_json(tmp_path / "model" / "model.json", described)
    with pytest.raises(BundleError, match="is not a name"):
        load_model(tmp_path / "model")
    assert package not in sys.modules
