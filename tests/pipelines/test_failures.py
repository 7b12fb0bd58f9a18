"""What a user reads when a run fails: one sentence, taken from the step's own words."""

from pathlib import Path

import pytest

from pipelines import run
from pipelines.local_remains import remove_unfinished
from thinktwice.errors import PipelineError
from thinktwice.files import write_json

TRACEBACK = """\
    Traceback (most recent call last):
      File "ephemeral_component.py", line 14, in ingest
    thinktwice.errors.DataError: log a.parquet has 0 rows: give a log with rows

    During handling of the above exception, another exception occurred:

    thinktwice.errors.SchemaError: column 'uid' is missing from a.parquet: correct 'column' in the schema

12:00:00.000 - ERROR - Task 'ingest' finished with status FAILURE
"""


def sentence(tmp_path: Path, log_text: str, failed: str | None = "ingest") -> str:
    log = tmp_path / "run.log"
    log.write_text(log_text)
    if failed:
        write_json(tmp_path / "result.json", {"tasks": {"first": {"status": "SUCCESS"}, failed: {"status": "FAILURE"}}})
    return run.why_it_failed(log, tmp_path / "result.json")


def test_the_step_s_own_sentence_comes_first(tmp_path: Path):
    message = sentence(tmp_path, TRACEBACK)
    assert message.startswith("column 'uid' is missing from a.parquet: correct 'column' in the schema")
    assert "step ingest" in message and str(tmp_path / "run.log") in message
    assert "\n" not in message and "Traceback" not in message


def test_a_foreign_error_is_named_with_its_step(tmp_path: Path):
    message = sentence(tmp_path, "    Traceback ...\n    torch.cuda.OutOfMemoryError: CUDA out of memory\n", "pretrain")
    assert message.startswith("step pretrain failed with torch.cuda.OutOfMemoryError: CUDA out of memory")


@pytest.mark.parametrize(
    "line",
    ["OSError: [Errno 28] No space left on device: '/x'", "sqlite3.OperationalError: database or disk is full"],
)
def test_a_full_disk_is_named(tmp_path: Path, line: str):
    message = sentence(tmp_path, f"    {line}\n", "materialize")
    assert "no space left" in message and "free some disk space" in message and "materialize" in message


def test_a_killed_step_is_named(tmp_path: Path):
    message = sentence(tmp_path, "    Streamed logs\n    Killed\n", "finetune")
    assert "step finetune was killed" in message and "memory" in message


def test_a_run_without_result_still_gives_a_sentence(tmp_path: Path):
    assert "the pipeline failed with ImportError" in sentence(tmp_path, "ImportError: no module\n", failed=None)


def test_refusal_tells_reasons_and_report(tmp_path: Path):
    write_json(tmp_path / "verdict" / "verdict.json", {"passed": False, "reasons": ["label has 3 values", "no clicks"]})
    message = run.refusal(tmp_path / "verdict", Path("report.html"))
    assert "label has 3 values; no clicks" in message and "report.html" in message


def test_two_runs_may_not_share_a_work_folder(tmp_path: Path):
    with run.only_run(tmp_path), pytest.raises(PipelineError, match="another run works in"), run.only_run(tmp_path):
        pass
    with run.only_run(tmp_path):
        pass  # the lock is free again


def test_only_unfinished_steps_are_removed(tmp_path: Path):
    done, half, empty = tmp_path / "run-1" / "ingest", tmp_path / "run-1" / "validate", tmp_path / "run-2" / "ingest"
    for task in (done, half, empty):
        task.mkdir(parents=True)
    (done / "executor_output.json").touch()
    (half / "clean").mkdir()
    remove_unfinished(tmp_path, since=0)
    assert done.exists() and not half.exists() and not (tmp_path / "run-2").exists()


def test_older_runs_are_left_alone(tmp_path: Path):
    task = tmp_path / "run-1" / "ingest"
    task.mkdir(parents=True)
    remove_unfinished(tmp_path, since=(tmp_path / "run-1").stat().st_mtime + 1)
    assert task.exists()
