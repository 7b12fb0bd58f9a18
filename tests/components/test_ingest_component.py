"""The step ``ingest``: as a function, and under the KFP local runner."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from kfp import local
from kfp.dsl import Dataset

from components.data.ingest.component import ingest
from thinktwice.data.feature_tables import feature_version
from thinktwice.data.sources.registry import builtin_schema
from thinktwice.errors import DataError
from thinktwice.files import read_json

COMPONENT = Path(__file__).resolve().parents[2] / "components/data/ingest"


def test_the_function_writes_the_folder_and_names_the_features(tmp_path: Path) -> None:
    log = Dataset(name="log", uri=str(tmp_path / "log"), metadata={})
    snapshot_id, version = ingest.python_func("sim", "", "", 300, 7, "0.1.0", log)
    assert read_json(tmp_path / "log/snapshot.json")["snapshot_id"] == snapshot_id
    assert version == feature_version(builtin_schema("sim"), snapshot_id, "0.1.0")
    assert log.metadata == {"rows": 300, "unparsable_rows": 0, "snapshot_id": snapshot_id}
    with pytest.raises(DataError, match="unknown source"):
        ingest.python_func("nothing", "", "", 0, 0, "0.1.0", log)


def test_the_interface_is_described() -> None:
    spec = ingest.component_spec
    described = yaml.safe_load((COMPONENT / "metadata.yaml").read_text())
    assert set(described["inputs"]) == set(spec.inputs or {})
    assert set(described["outputs"]) == set(spec.outputs or {})


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_the_step_runs_under_the_local_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(COMPONENT.parents[2]))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))

    task = ingest(
        source="sim",
        source_path="",
        schema_path="",
        limit=300,
        seed=7,
        code_version="0.1.0",
    )
    assert task.outputs["feature_version"].startswith("sim-")
    (written,) = (tmp_path / "root").rglob("log.parquet")
    assert pq.read_metadata(written).num_rows == 300
