"""The pre-training step: its function, and the step under the local runner."""

from __future__ import annotations

from pathlib import Path

import pytest
from kfp import dsl, local

from components.training.pretrain.component import pretrain
from tests.train.logs import build_small
from thinktwice.files import read_json
from thinktwice.models import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("small") / "training_set", rows=1500)


def test_the_step_writes_a_model_and_its_losses(data: Path, tmp_path: Path) -> None:
    training_set = dsl.Dataset(uri=str(data))
    model, metrics = dsl.Model(uri=str(tmp_path / "pretrained")), dsl.Metrics(uri=str(tmp_path / "metrics"))
    pretrain.python_func(
        training_set=training_set, recipe="tiny", seed=3, code_version="1", pretrained=model, metrics=metrics
    )
    _, info = load_model(model.path)
    last = read_json(Path(model.path) / "training.json")["curve"][-1]
    assert info.stage == "pretrained"
    assert model.metadata["seed"] == 3
    assert metrics.metadata["label_logloss"] == last["label"]
    assert metrics.metadata["loss_genre"] == last["fields"]["genre"]


@pytest.mark.pipeline
def test_the_step_runs_under_the_local_runner(data: Path, tmp_path: Path) -> None:
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))

    @dsl.pipeline(name="only-pretrain")
    def pipeline():
        training_set = dsl.importer(artifact_uri=str(data), artifact_class=dsl.Dataset, reimport=False)
        pretrain(training_set=training_set.output, recipe="tiny", seed=0, code_version="1")

    pipeline()
    (written,) = (tmp_path / "root").glob("only-pretrain*/pretrain/pretrained")
    assert load_model(written)[1].stage == "pretrained"
