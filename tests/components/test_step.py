"""A step leaves a record of the error that ends it, and fails all the same."""

import json
from pathlib import Path

import pytest

from components.step import step
from thinktwice import progress
from thinktwice.console.events import events_in
from thinktwice.errors import DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@step
def failing(how: str) -> str:
    """Fails in every way a step can."""
    import os
    import signal

    import polars as pl
    import pyarrow as pa

    if how == "own":
        from thinktwice.errors import DataError

        raise DataError("the log is empty: give a log with rows")
    if how == "arrow":
        pa.array([2**60]).cast(pa.int8())
    if how == "panic":
        pl.from_arrow(pa.table({"x": pa.array([None], pa.decimal256(50, 2))}))
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return how


def errors(file: Path) -> list[dict]:
    return [e for e in events_in(file.read_bytes()) if e["event"] == "error"] if file.exists() else []


@pytest.mark.pipeline
def test_the_error_of_a_step_is_recorded_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kfp import dsl, local
    from kfp.local import subprocess_task_handler

    ended: list[int] = []
    run_process = subprocess_task_handler.run_local_subprocess

    def counted(*args: object, **rest: object) -> int:
        ended.append(run_process(*args, **rest))
        return ended[-1]

    @dsl.pipeline(name="one-step")
    def one_step(how: str) -> str:
        return failing(how=how).output

    monkeypatch.setattr(subprocess_task_handler, "run_local_subprocess", counted)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    file = tmp_path / "progress.jsonl"
    monkeypatch.setenv(progress.VARIABLE, str(file))
    assert one_step(how="well").output == "well" and errors(file) == []
    for how in ("own", "arrow", "panic", "killed"):
        with pytest.raises(RuntimeError):
            one_step(how=how)
    own, arrow, panic = errors(file)  # none of the killed one
    assert own == own | {"stage": "failing", "type": "thinktwice.errors.DataError", "own": True}
    assert own["message"] == "the log is empty: give a log with rows"
    assert arrow["type"] == "pyarrow.lib.ArrowInvalid" and not arrow["own"] and "not in range" in arrow["message"]
    assert panic["type"].endswith("PanicException") and "Int256" in panic["message"]
    assert ended == [0, 1, 1, 1, 137] or ended == [0, 1, 1, 1, -9]  # dash execs the last command, bash may not


def test_without_a_watcher_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.VARIABLE, raising=False)

    def wrong() -> None:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        progress.recorded(wrong)()
    assert list(tmp_path.iterdir()) == []


def test_a_recorded_step_looks_like_the_step() -> None:
    import inspect

    def some(a: int, b: str = "x") -> tuple[int, str]:
        """Does something."""
        return a, b

    same = progress.recorded(some)
    assert same(1, b="y") == (1, "y")
    assert inspect.getfullargspec(same) == inspect.getfullargspec(some)
    assert (
        same.__name__ == "some" and same.__doc__ == "Does something." and same.__annotations__ == some.__annotations__
    )


def test_a_line_that_a_killed_step_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    whole = json.dumps({"stage": "a", "event": "note", "text": "x"})
    assert [e["text"] for e in events_in(f"{whole}\n{whole[:9]}{whole}\n7\n{whole}\n".encode())] == ["x", "x"]
