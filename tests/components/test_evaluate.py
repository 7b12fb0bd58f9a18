"""The step ``evaluate`` as a function, and the three steps of this stage in one run under the KFP local runner."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from kfp import dsl, local
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Metrics, Model

from components.evaluation.bless.component import bless
from components.evaluation.evaluate.component import evaluate
from components.evaluation.fit_test_time.component import fit_test_time
from tests.testtime import world
from thinktwice.data.training_set import load_training_set
from thinktwice.evaluate.evaluation import read_evaluation, recorded_evaluation
from thinktwice.evaluate.package import model_version
from thinktwice.files import read_json
from thinktwice.release.bundle import load_bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.finished_run(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("name", ["good", "bad"])
def test_writes_the_bundle_and_finite_metrics(finished: Path, tmp_path: Path, name: str) -> None:
    bundle = Model(name="bundle", uri=str(tmp_path / "bundle"), metadata={})
    report = HTML(name="report", uri=str(tmp_path / "report.html"), metadata={})
    metrics = Metrics(name="metrics", uri=str(tmp_path / "metrics"), metadata={})
    classification = ClassificationMetrics(name="classification", uri=str(tmp_path / "classification"), metadata={})
    numbers = Artifact(name="numbers", uri=str(tmp_path / "numbers"), metadata={})
    evaluate.python_func(
        Dataset(uri=str(finished / "set")),
        Model(uri=str(finished / ("plain" if name == "good" else "bad"))),
        Model(uri=str(finished / "bad")),
        Artifact(uri=str(finished / f"test_time-{name}")),
        "0123456789abcdef",
        "world-1.a",
        "tiny",
        "lean",
        3,
        "0.1.0",
        bundle,
        report,
        metrics,
        classification,
        numbers,
    )
    loaded = load_bundle(bundle.path)
    data = load_training_set(finished / "set")
    split = data.info.split
    expected = model_version(data.schema, "world-1.a", split=split, recipe="tiny", mode="lean", seed=3)
    assert loaded.manifest.model_version == bundle.metadata["model_version"] == expected
    assert loaded.manifest.feature_service == "ctr_world_1_a"
    assert loaded.manifest.snapshot_id == "0123456789abcdef"
    assert loaded.manifest.package_version == "0.1.0"
    assert "time against one pass" in Path(report.path).read_text()
    assert "time against one pass" not in (Path(bundle.path) / "report/report.html").read_text()
    assert metrics.metadata["plain_time_ratio"] == 1.0
    assert metrics.metadata["test_time_time_ratio"] > 0
    written = recorded_evaluation(bundle.path)
    for column in written.columns:
        assert metrics.metadata[f"{column.key}_auc"] == column.metrics.auc
    assert np.isfinite([v for v in metrics.metadata.values()]).all()

    assert read_evaluation(Path(numbers.path) / "evaluation.json") == written
    table = pl.read_csv(Path(numbers.path) / "evaluation.csv")
    shipped = table.filter(section="shipped", metric="auc")["value"].item()
    assert shipped == written.findings.comparison.auc.value
    assert shipped == pytest.approx(written.column(written.shipped).metrics.auc, abs=1e-12)

    roc = classification.metadata["confidenceMetrics"]
    assert 2 < len(roc) <= 200
    thresholds = [point["confidenceThreshold"] for point in roc]
    assert np.isfinite(thresholds).all()
    assert min(thresholds) >= 0
    assert max(thresholds) <= 1
    matrix = classification.metadata["confusionMatrix"]
    assert [s["displayName"] for s in matrix["annotationSpecs"]] == ["no click", "click"]
    assert sum(sum(row["row"]) for row in matrix["rows"]) == written.rows
    assert metrics.metadata["confusion_threshold"] == written.operating_point.threshold


def test_the_interface_is_described() -> None:
    described = yaml.safe_load((ROOT / "components/evaluation/evaluate/metadata.yaml").read_text())
    assert set(described["inputs"]) == set(evaluate.component_spec.inputs)
    assert set(described["outputs"]) == set(evaluate.component_spec.outputs)


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_the_stage_runs_under_the_local_runner(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    folders = {name: str(finished / name) for name in ("set", "plain", "bad")}

    @dsl.pipeline(name="evaluation")
    def stage(state_dir: str) -> bool:
        rows = dsl.importer(artifact_uri=folders["set"], artifact_class=Dataset, reimport=False)
        plain = dsl.importer(artifact_uri=folders["plain"], artifact_class=Model, reimport=False)
        pretrained = dsl.importer(artifact_uri=folders["bad"], artifact_class=Model, reimport=False)
        inputs = {"training_set": rows.output, "plain": plain.output, "pretrained": pretrained.output}
        fitted = fit_test_time(**inputs, recipe="tiny", mode="lean", code_version="0.1.0")
        measured = evaluate(
            **inputs,
            test_time=fitted.outputs["test_time"],
            snapshot_id="0123456789abcdef",
            feature_version="world-1",
            recipe="tiny",
            mode="lean",
            seed=0,
            code_version="0.1.0",
        )
        judged = bless(
            training_set=rows.output,
            bundle=measured.outputs["bundle"],
            state_dir=state_dir,
            code_version="0.1.0",
        )
        return judged.outputs["Output"]

    assert stage(state_dir=str(tmp_path / "state")).output is True
    (found,) = (tmp_path / "root").rglob("blessing.json")
    blessing = read_json(found)
    assert blessing["blessed"]
    (manifest,) = (tmp_path / "root").rglob("manifest.json")
    assert load_bundle(manifest.parent).hash == blessing["bundle_hash"]
