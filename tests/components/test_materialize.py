"""The materialize step as a plain function: outputs, metadata, metrics, documentation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import feast  # noqa: F401 - sets warning filters on import, which must not happen within a test
import pytest
import yaml

from components.features.materialize import component
from feature_repo.store import read_info
from tests.features.conftest import SCHEMA, make_rows, write_clean
from thinktwice.errors import FeatureStoreError

pytestmark = [
    # KFP's and Feast's own, on import and in their calls of pandas and protobuf.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def run(clean: Path, out: Path, online_store: str = "sqlite") -> tuple[Any, dict[str, float]]:
    logged: dict[str, float] = {}
    artifact = SimpleNamespace(path=str(out), metadata={})
    component.materialize.python_func(
        clean=SimpleNamespace(path=str(clean)),
        feature_version="step-1",
        online_store=online_store,
        redis_address="",
        code_version="test",
        feature_store=artifact,
        metrics=SimpleNamespace(log_metric=lambda name, value: logged.update({name: value})),
    )
    return artifact, logged


def test_fills_a_store_and_reports_it(tmp_path: Path) -> None:
    log = write_clean(tmp_path / "clean", SCHEMA, make_rows(num_rows=80))
    artifact, logged = run(log.folder, tmp_path / "store")
    info = read_info(tmp_path / "store")
    assert artifact.metadata["feature_service"] == info.feature_service == "ctr_step_1"
    assert {f"rows_{v.name}": v.rows for v in info.views} | {"online_values_compared": info.compared_values} == logged


def test_an_unknown_store_fails_the_step(tmp_path: Path) -> None:
    log = write_clean(tmp_path / "clean", SCHEMA, make_rows(num_rows=20))
    with pytest.raises(FeatureStoreError, match="choose one of sqlite, redis"):
        run(log.folder, tmp_path / "store", online_store="etcd")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["materialize", "build_training_set"])
def test_the_step_describes_every_parameter(name: str) -> None:
    import importlib

    module = importlib.import_module(f"components.features.{name}.component")
    step = getattr(module, name)
    text = yaml.safe_load((Path(module.__file__ or "").parent / "metadata.yaml").read_text())
    assert text["name"] == name
    assert set(text["inputs"]) == set(step.component_spec.inputs)
    assert set(text["outputs"]) == set(step.component_spec.outputs)
    assert not step.component_spec.implementation.container.command or "pip install" not in " ".join(
        map(str, step.component_spec.implementation.container.command)
    )
