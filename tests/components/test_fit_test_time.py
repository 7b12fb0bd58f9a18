"""The step ``fit_test_time`` as a function."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kfp.dsl import Artifact, Dataset, Metrics, Model

from components.evaluation.evaluate.component import evaluate
from components.evaluation.fit_test_time.component import fit_test_time
from tests.testtime import world
from thinktwice.choices import MAX_COST
from thinktwice.errors import PipelineError
from thinktwice.files import read_json

COMPONENT = Path(__file__).resolve().parents[2] / "components/evaluation/fit_test_time"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Model, Model]:
    world.one_thread()
    folder = tmp_path_factory.mktemp("inputs")
    data = world.make_training_set(folder / "set", rows=4000)
    world.train_model(data, folder / "plain", epochs=2)
    world.train_model(data, folder / "pretrained", epochs=1, seed=1)
    return (
        Dataset(uri=str(folder / "set")),
        Model(uri=str(folder / "plain")),
        Model(uri=str(folder / "pretrained")),
    )


def outputs(folder: Path) -> tuple[Artifact, Metrics]:
    return (
        Artifact(name="test_time", uri=str(folder / "out"), metadata={}),
        Metrics(name="metrics", uri=str(folder / "metrics"), metadata={}),
    )


def test_writes_the_parameters_and_logs_every_candidate(inputs: tuple[Dataset, Model, Model], tmp_path: Path) -> None:
    test_time, metrics = outputs(tmp_path)
    fit_test_time.python_func(*inputs, "tiny", "lean", "0.1.0", test_time, metrics)
    written = read_json(tmp_path / "out" / "test_time.json")
    assert (tmp_path / "out" / "counts.safetensors").is_file()
    assert test_time.metadata["mode"] == written["config"]["mode"]
    assert test_time.metadata["sentence"] == written["report"]["sentence"]
    assert metrics.metadata["test_time_work_ships"] == float(written["config"]["mode"] != "off")
    assert metrics.metadata["pretrained_trunk_ships"] == float(written["report"]["trunk"] == "pretrained")
    assert len(written["report"]["candidates"]) > 5
    for candidate in written["report"]["candidates"]:
        name = candidate["name"].replace(", ", "_")
        assert metrics.metadata[f"logloss_change_{name}"] == candidate["change"]["value"]
        assert metrics.metadata[f"passes_{name}"] == candidate["passes"]
    costs = read_json(tmp_path / "out" / "cost.json")
    assert set(costs["candidates"]) == {c["name"] for c in written["report"]["candidates"]} and costs["max_cost"] == 2.0
    assert metrics.metadata["cost_matt"] == costs["candidates"]["matt"]["value"]


def test_the_mode_says_what_is_tried(inputs: tuple[Dataset, Model, Model], tmp_path: Path) -> None:
    test_time, metrics = outputs(tmp_path)
    fit_test_time.python_func(*inputs, "tiny", "calibrated", "0.1.0", test_time, metrics)
    assert {name for name in metrics.metadata if name.startswith("passes_")} == {"passes_calibrated by support"}
    with pytest.raises(PipelineError, match="test-time mode 'fast' is unknown: choose one of lean, off,"):
        fit_test_time.python_func(*inputs, "tiny", "fast", "0.1.0", test_time, metrics)
    with pytest.raises(PipelineError, match="recipe 'none' is unknown"):
        fit_test_time.python_func(*inputs, "none", "lean", "0.1.0", test_time, metrics)


def test_the_default_limit_is_that_of_the_settings() -> None:
    for component in (fit_test_time, evaluate):
        assert component.component_spec.inputs["max_cost"].default == MAX_COST


def test_the_interface_is_described() -> None:
    described = yaml.safe_load((COMPONENT / "metadata.yaml").read_text())
    assert set(described["inputs"]) == set(fit_test_time.component_spec.inputs)
    assert set(described["outputs"]) == set(fit_test_time.component_spec.outputs)
