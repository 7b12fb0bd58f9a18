"""The fine-tuning step: its function, and twice under the local runner, from scratch and from a pre-trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
from kfp import dsl, local

from components.training.finetune.component import finetune
from tests.train.logs import build_small
from thinktwice import recipes
from thinktwice.files import read_json
from thinktwice.models import load_model
from thinktwice.pretrain.pretrain import pretrain

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("small") / "training_set", rows=1500)


def test_the_step_writes_a_model_and_its_metrics(data: Path, tmp_path: Path) -> None:
    model, metrics = dsl.Model(uri=str(tmp_path / "model")), dsl.Metrics(uri=str(tmp_path / "metrics"))
    finetune.python_func(
        training_set=dsl.Dataset(uri=str(data)), recipe="tiny", seed=3, code_version="1", model=model, metrics=metrics
    )
    record = read_json(Path(model.path) / "training.json")
    assert load_model(model.path)[1].stage == "finetuned"
    assert model.metadata["init"] == "random"
    assert metrics.metadata["valid_auc"] == record["valid"]["auc"]
    assert metrics.metadata["epochs"] == record["chosen"]["epochs"]


@pytest.mark.pipeline
def test_the_step_runs_under_the_local_runner_from_both_starts(data: Path, tmp_path: Path) -> None:
    pretrain(data, tmp_path / "pretrained", recipes.get("tiny").model, recipes.get("tiny").pretrain)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))

    @dsl.pipeline(name="only-finetune")
    def pipeline():
        training_set = dsl.importer(artifact_uri=str(data), artifact_class=dsl.Dataset, reimport=False)
        start = dsl.importer(artifact_uri=str(tmp_path / "pretrained"), artifact_class=dsl.Model, reimport=False)
        finetune(training_set=training_set.output, recipe="tiny", seed=0, code_version="1")
        finetune(training_set=training_set.output, recipe="tiny", seed=0, code_version="1", pretrained=start.output)

    pipeline()
    (root,) = (tmp_path / "root").glob("only-finetune*")
    starts = {read_json(path)["init"] for path in root.glob("finetune*/model/training.json")}
    assert starts == {"random", "pretrained"}
