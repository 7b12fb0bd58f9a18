"""What a user reads when a run fails: one sentence, from the record that the step has left of its error."""

import sqlite3
import struct
import zipfile
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from pipelines import run
from pipelines.local_remains import remove_unfinished
from thinktwice.console.output import shown
from thinktwice.errors import PipelineError, SchemaError
from thinktwice.explain import error_record
from thinktwice.files import write_json


def sentence(tmp_path: Path, record: dict | None, failed: str | None = "ingest", exit_status: int | None = 1) -> str:
    if failed:
        tasks = {"first": {"status": "SUCCESS"}, failed: {"status": "FAILURE", "exit_status": exit_status}}
        write_json(tmp_path / "result.json", {"tasks": tasks})
    return run.why_it_failed(tmp_path / "result.json", record, exit_status or 1, tmp_path / "run.log")


def record_of(error: BaseException) -> dict:
    return {"stage": "ingest", "event": "error", **error_record(error)._asdict()}


def test_the_step_s_own_sentence_comes_first(tmp_path: Path):
    error = SchemaError("column 'uid' is missing from a.parquet: correct 'column' in the schema")
    message = sentence(tmp_path, record_of(error))
    assert message.startswith("column 'uid' is missing from a.parquet: correct 'column' in the schema")
    assert "step ingest" in message and str(tmp_path / "run.log") in message


def panic() -> BaseException:
    with pytest.raises(BaseException, match="Int256") as caught:
        pl.from_arrow(pa.table({"x": pa.array([None], pa.decimal256(50, 2))}))
    return caught.value


def duckdb_error() -> BaseException:
    with pytest.raises(duckdb.Error) as caught, duckdb.connect() as connection:
        connection.execute("SELECT no_such_column")
    return caught.value


FOREIGN = [
    (pa.ArrowInvalid("Integer value 9007199254741011 not in range"), "pyarrow.lib.ArrowInvalid: Integer value"),
    (pl.exceptions.ComputeError("no such thing"), "polars.exceptions.ComputeError: no such thing"),
    (struct.error("unpack requires 4 bytes"), "struct.error: unpack requires 4 bytes"),
    (StopIteration(), "failed with StopIteration; what led to it"),
    (KeyError("user_id"), "KeyError: 'user_id'"),
    (ValueError("first line\nsecond line"), "ValueError: first line; what led to it"),
]


@pytest.mark.parametrize(("error", "words"), FOREIGN)
def test_a_foreign_error_is_named_with_its_step(tmp_path: Path, error: BaseException, words: str):
    message = sentence(tmp_path, record_of(error), "pretrain")
    assert message.startswith("step pretrain failed with") and words in message
    assert "killed" not in message and "\n" not in message and str(tmp_path / "run.log") in message


def test_errors_that_are_no_exceptions_of_python_s_are_named_too(tmp_path: Path):
    assert "PanicException: operator does not support primitive" in sentence(tmp_path, record_of(panic()))
    assert "BinderException: Binder Error: Referenced column" in sentence(tmp_path, record_of(duckdb_error()))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/x"), "no space left on the disk: free some disk space"),
        (OSError(122, "Disk quota exceeded", "/x"), "no space left on the disk"),
        (sqlite3.OperationalError("database or disk is full"), "no space left on the disk"),
        (duckdb.IOException("IO Error: No space left on device"), "no space left on the disk"),
        (MemoryError(), "memory is full: end other programs"),
        (pa.ArrowMemoryError("malloc of size 1"), "memory is full (malloc of size 1)"),
        (duckdb.OutOfMemoryException("failed to pin block"), "memory is full (failed to pin block)"),
        (KeyboardInterrupt(), "stopped; nothing half-written is left"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (zipfile.BadZipFile("File is not a zip file"), "an archive is damaged (File is not a zip file)"),
        (PermissionError(13, "Permission denied", "/x/y"), "cannot use /x/y (Permission denied)"),
        ("\udcff", "not valid UTF-8"),
    ],
)
def test_what_a_user_can_mend_is_said_in_our_words(tmp_path: Path, error: BaseException | str, words: str):
    if isinstance(error, str):
        with pytest.raises(UnicodeEncodeError) as caught:
            error.encode()
        error = caught.value
    message = sentence(tmp_path, record_of(error), "materialize")
    assert words in message and "materialize" in message and "failed with" not in message


@pytest.mark.parametrize(
    ("exit_status", "words"),
    [
        (-9, "was killed (SIGKILL), which the system does when memory runs out"),
        (137, "was killed (SIGKILL)"),  # by the shell around it
        (-11, "crashed (SIGSEGV)"),
        (134, "crashed (SIGABRT)"),
        (143, "was ended from outside (SIGTERM)"),
        (1, "ended without a message (exit status 1)"),
        (None, "ended without a message:"),
    ],
)
def test_killed_is_said_of_a_step_without_a_record_and_by_its_exit_status(
    tmp_path: Path, exit_status: int | None, words: str
):
    message = sentence(tmp_path, None, "finetune", exit_status)
    assert message.startswith(f"step finetune {words}") and str(tmp_path / "run.log") in message
    assert ("was killed" in message) == words.startswith("was killed")


def test_a_run_without_result_still_gives_a_sentence(tmp_path: Path):
    assert sentence(tmp_path, record_of(ImportError("no module")), None).startswith(
        "the pipeline failed with ImportError"
    )
    assert sentence(tmp_path, None, None, -9).startswith("the pipeline was killed (SIGKILL)")


def test_refusal_tells_reasons_report_and_quarantine(tmp_path: Path):
    write_json(tmp_path / "verdict" / "verdict.json", {"passed": False, "reasons": ["label has 3 values", "no clicks"]})
    write_json(tmp_path / "aside" / "quarantine.json", {"rows_quarantined": 1234})
    message = run.refusal(tmp_path / "verdict", Path("report.html"), tmp_path / "aside")
    assert "label has 3 values; no clicks" in message and "report.html" in message
    assert message.endswith(f"the 1,234 quarantined rows are in {shown(tmp_path / 'aside')}")
    write_json(tmp_path / "aside" / "quarantine.json", {"rows_quarantined": 0})
    assert "quarantine" not in run.refusal(tmp_path / "verdict", Path("report.html"), tmp_path / "aside")


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
