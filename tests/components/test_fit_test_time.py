"""The step ``fit_test_time`` as a function."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kfp.dsl import Artifact, Dataset, Metrics, Model

from components.evaluation.fit_test_time.component import fit_test_time
from tests.testtime import world
from thinktwice.errors import PipelineError
from thinktwice.files import read_json

COMPONENT = Path(__file__).resolve().parents[2] / "components/evaluation/fit_test_time"


def test_writes_the_parameters_and_logs_every_candidate(tmp_path: Path) -> None:
    world.one_thread()
    data = world.make_training_set(tmp_path / "set", rows=4000)
    world.train_model(data, tmp_path / "plain", epochs=2)
    world.train_model(data, tmp_path / "pretrained", epochs=1, seed=1)
    test_time = Artifact(name="test_time", uri=str(tmp_path / "out"), metadata={})
    metrics = Metrics(name="metrics", uri=str(tmp_path / "metrics"), metadata={})
    inputs = (
        Dataset(uri=str(tmp_path / "set")),
        Model(uri=str(tmp_path / "plain")),
        Model(uri=str(tmp_path / "pretrained")),
    )
    fit_test_time.python_func(*inputs, "tiny", "0.1.0", test_time, metrics)
    written = read_json(tmp_path / "out" / "test_time.json")
    assert (tmp_path / "out" / "counts.safetensors").is_file()
    assert test_time.metadata["mode"] == written["config"]["mode"]
    assert test_time.metadata["sentence"] == written["report"]["sentence"]
    assert metrics.metadata["test_time_work_ships"] == float(written["config"]["mode"] != "off")
    for candidate in written["report"]["candidates"]:
        name = candidate["name"].replace(", ", "_")
        assert metrics.metadata[f"logloss_change_{name}"] == candidate["change"]["value"]
    with pytest.raises(PipelineError, match="recipe 'none' is unknown"):
        fit_test_time.python_func(*inputs, "none", "0.1.0", test_time, metrics)


def test_the_interface_is_described() -> None:
    described = yaml.safe_load((COMPONENT / "metadata.yaml").read_text())
    assert set(described["inputs"]) == set(fit_test_time.component_spec.inputs)
    assert set(described["outputs"]) == set(fit_test_time.component_spec.outputs)
