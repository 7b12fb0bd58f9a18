"""The validate step under the local pipeline runner."""

from pathlib import Path

import pytest

from tests.validate.raw import shop_columns, write_raw

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:kfp"),
    pytest.mark.filterwarnings("ignore::FutureWarning:kfp"),
]


def test_the_step_runs_in_a_pipeline(tmp_path: Path) -> None:
    from kfp import dsl, local

    from components.data.validate.component import validate

    columns = shop_columns(200)
    columns["clicked"][3] = "perhaps"
    raw = write_raw(tmp_path / "raw", columns)

    @dsl.pipeline(name="only-validate")
    def only_validate() -> bool:
        log = dsl.importer(artifact_uri=str(raw), artifact_class=dsl.Dataset)
        return validate(log=log.output, code_version="test").outputs["Output"]

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    task = only_validate()
    assert task.output is True
    (folder,) = (tmp_path / "root").glob("*/validate")
    assert {p.name for p in folder.iterdir()} >= {"clean", "quarantine", "report", "verdict_file"}
    assert (folder / "clean/clean.parquet").is_file()
    assert "199 clean" in (folder / "report").read_text()
