"""Tasks beside the one whose turn it is: the same results and the same lines, whatever becomes of either process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp.local import io, status, subprocess_task_handler
from kfp.local.orchestrator import task_executor

from pipelines import beside
from pipelines.beside import MEANWHILE, Finished, TasksBeside, independent, siblings
from pipelines.ctr_training import build_pipeline
from pipelines.local_cache import CheckedCache
from pipelines.local_runner import Recorder
from tests.pipelines import ir
from thinktwice import progress
from thinktwice.console.events import events_in

COMPONENTS: dict[str, Any] = dict(build_pipeline("local").pipeline_spec.components)
DATA = ["ingest", "validate", "materialize", "build-training-set"]
Step = Callable[[str], int]
Turn = Callable[[str, Step], Recorder]
SUCCESS, FAILURE = status.Status.SUCCESS, status.Status.FAILURE


@pytest.fixture(autouse=True)
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The progress file of the run."""
    monkeypatch.setenv(progress.VARIABLE, str(tmp_path / "progress.jsonl"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "progress.jsonl"


def lines(events: Path) -> list[str]:
    """Events as ``stage event text``."""
    found = events_in(events.read_bytes()) if events.exists() else []
    return [" ".join([e["stage"], e["event"], str(e.get("text", ""))]).strip() for e in found]


@pytest.mark.parametrize(
    ("name", "done", "found"),
    [
        ("finetune", DATA, ["pretrain", "finetune-2"]),
        ("pretrain", DATA, ["finetune"]),
        ("finetune-2", [*DATA, "pretrain"], ["finetune"]),
        ("finetune", [*DATA, "pretrain", "finetune-2"], []),
        ("ingest", [], []),
        ("build-training-set", DATA[:3], []),
        ("bless", [*DATA, "pretrain", "finetune", "finetune-2", "fit-test-time", "evaluate"], []),
    ],
)
def test_only_what_depends_on_no_running_task_is_executed_beside_it(name: str, done: list[str], found: list[str]):
    assert independent([name], siblings(name, COMPONENTS), done, COMPONENTS) == found


def test_what_runs_in_another_process_is_left_to_it():
    assert independent(["pretrain", "finetune"], siblings("pretrain", COMPONENTS), DATA, COMPONENTS) == []
    assert independent(["finetune"], siblings("finetune", COMPONENTS), [*DATA, "pretrain"], COMPONENTS) == [
        "finetune-2"
    ]


def test_no_task_with_an_effect_is_executed_out_of_turn():
    """For every task of the graph, after any number of others."""
    order = [*DATA, "pretrain", "finetune", "finetune-2", "fit-test-time", "evaluate", "bless", "package", "deploy"]
    assert set(order) == ir.TASKS
    for at in range(len(order)):
        for name in order[at:]:
            tasks = siblings(name, COMPONENTS)
            found = independent([name], tasks, order[:at], COMPONENTS)
            assert not {name, *order[:at], *ir.EFFECTS, ir.CANARY} & set(found)
            for place, other in enumerate(found):
                needed = set(tasks[other].dependent_tasks)
                assert name not in needed and needed <= {*order[:at], *found[:place]}


def finished(name: str, how: status.Status = SUCCESS) -> Finished:
    return Finished({"of": name}, how, {"status": how.name, "reused": False, "exit_status": 0})


def reporting(name: str) -> Finished:
    """A task that reports what a step reports."""
    with progress.stage(f"task/{name}"):
        progress.counter(stage=name, total=1)(1)
        progress.note(name, f"note of {name}")
        print(f"output of {name}")
    return finished(name)


def test_results_are_taken_in_turn_with_what_was_reported(
    tmp_path: Path, events: Path, capsys: pytest.CaptureFixture[str]
):
    tasks = TasksBeside(["a", "b"], reporting, lambda: True, tmp_path)
    try:
        tasks._process.join()
        assert lines(events) == [] and tasks.has("a") and not tasks.has("c")
        assert [tasks.take("a"), tasks.take("b")] == [finished("a"), finished("b")]
        assert tasks.ended
    finally:
        tasks.stop()
    told = [[f"task/{n} start", f"{n} note note of {n}", f"task/{n} note {MEANWHILE}", f"task/{n} done"] for n in "ab"]
    assert lines(events) == told[0] + told[1]  # no bar of what has ended
    assert capsys.readouterr().out.split() == ["output", "of", "a", "output", "of", "b"]


def test_a_failure_is_taken_like_a_result_and_ends_what_follows(tmp_path: Path, events: Path):
    def execute(name: str) -> Finished:
        with pytest.raises(KeyError), progress.stage(f"task/{name}"):
            raise KeyError
        return finished(name, FAILURE)

    tasks = TasksBeside(["a", "b"], execute, lambda: True, tmp_path)
    try:
        assert tasks.take("a") == finished("a", FAILURE)
        assert tasks.take("b") is None
    finally:
        tasks.stop()
    assert lines(events) == ["task/a start", "task/a failed"]


def no_fork(*_: object) -> None:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def killed(name: str) -> Finished:
    os.kill(os.getpid(), signal.SIGKILL)
    return finished(name)


@pytest.mark.parametrize("why", ["no idle core", "no memory for a fork", "killed", "an error of ours", "no result"])
def test_without_a_result_a_task_is_left_to_its_turn(
    why: str, tmp_path: Path, events: Path, monkeypatch: pytest.MonkeyPatch
):
    ends: dict[str, Callable[[str], Finished | None]] = {
        "killed": killed,
        "an error of ours": lambda name: {}[name],
        "no result": lambda name: None,
    }
    if why == "no memory for a fork":
        monkeypatch.setattr(os, "fork", no_fork)
    tasks = TasksBeside(["a", "b"], ends.get(why, reporting), lambda: why != "no idle core", tmp_path)
    try:
        assert tasks.take("a") is None and tasks.take("b") is None
    finally:
        tasks.stop()
    assert lines(events) == []


def ended(pid: int) -> bool:
    """Wait until a process has ended."""
    for _ in range(1200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def begun(file: Path) -> int:
    """Wait until a task has written the number of its process."""
    for _ in range(1200):
        if file.exists() and file.read_text():
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError("it has not begun")


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # from Python 3.12 on: this process has threads, which the fork does not use
@pytest.mark.parametrize("how", ["the run stops", "the run is killed"])
def test_no_task_outlives_the_run(how: str, tmp_path: Path):
    file = tmp_path / "pid"

    def execute(name: str) -> Finished:
        if name == "b":
            file.write_text(str(os.getpid()))
            time.sleep(600)
        return finished(name)

    def run() -> None:
        tasks = TasksBeside(["a", "b"], execute, lambda: True, tmp_path)
        begun(file)
        if how == "the run is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        tasks.stop()
        os._exit(0 if tasks.take("a") == finished("a") and tasks.take("b") is None else 1)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == (0 if how == "the run stops" else -signal.SIGKILL)
    assert ended(begun(file))


#: The orders that KFP may choose, with the tasks that run beside another one.
ORDERS = [
    (("finetune", "pretrain", "finetune-2"), ["pretrain", "finetune-2"]),
    (("pretrain", "finetune", "finetune-2"), ["finetune", "finetune-2"]),
    (("pretrain", "finetune-2", "finetune"), ["finetune"]),
]


@pytest.fixture
def turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Step], Recorder]]:
    """Gives a task of the graph its turn in a run whose steps are executed by a function: the name of the task -> exit status."""
    recorders: list[Recorder] = []
    steps: list[Step] = []
    store = io.IOStore()

    def execute(task_name: str, **options: Any) -> tuple[dict[str, Any], status.Status]:
        code = subprocess_task_handler.run_local_subprocess(full_command=[task_name], env_vars={})
        return ({"model": task_name}, SUCCESS) if code == 0 else ({}, FAILURE)

    monkeypatch.setattr(beside, "allowed", lambda num_bytes: True)
    monkeypatch.setattr(task_executor, "execute_single_task", execute)
    monkeypatch.setattr(subprocess_task_handler, "run_local_subprocess", lambda command, _: steps[0](command[0]))
    recorders.append(Recorder(CheckedCache(str(tmp_path / "cache")), {}))
    monkeypatch.setattr(subprocess_task_handler, "run_local_subprocess", recorders[0].run_process)
    (tmp_path / "root").mkdir()
    for name in DATA:
        recorders[0].tasks[name] = {"status": "SUCCESS", "outputs": {"training_set": str(tmp_path)}}

    def give(name: str, step: Step) -> Recorder:
        steps[:] = [step]
        outputs, result = recorders[0].execute(
            task_name=name,
            task_spec=siblings(name, COMPONENTS)[name],
            components=COMPONENTS,
            io_store=store,
            pipeline_root=str(tmp_path / "root"),
        )
        assert result is SUCCESS and outputs == {"model": name}
        for key, value in outputs.items():
            store.put_task_output(name, key, value)
        return recorders[0]

    yield give
    recorders[0].stop()


class Steps:
    """Executes steps that meet each other: the plain fine-tuning lasts until the other one has begun."""

    def __init__(self, log: Path, dies: str = "") -> None:
        self.log, self.dies, self.own = log, dies, os.getpid()

    @property
    def begun(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def __call__(self, name: str) -> int:
        first = name not in self.begun
        with self.log.open("a") as handle:
            handle.write(f"{name}\n")
        for _ in range(3000):
            if name != "finetune" or "finetune-2" in self.begun or not first:
                break
            time.sleep(0.01)
        else:
            return 1
        if name == "finetune-2" and self.dies == "finetune" and os.getpid() != self.own:
            time.sleep(600)  # it is stopped with the other one
        return -signal.SIGKILL if name == self.dies and first else 0


@pytest.mark.parametrize(("order", "meanwhile"), ORDERS)
def test_both_fine_tunings_run_at_the_same_time_in_any_order(
    order: tuple[str, ...], meanwhile: list[str], turn: Turn, events: Path, tmp_path: Path
):
    steps = Steps(tmp_path / "steps")
    for name in order:
        recorder = turn(name, steps)
    assert sorted(steps.begun) == sorted(order)
    assert [recorder.tasks[name]["status"] for name in order] == ["SUCCESS"] * 3
    assert [line for line in lines(events) if line.endswith(" done")] == [f"task/{name} done" for name in order]
    assert [line for line in lines(events) if MEANWHILE in line] == [f"task/{n} note {MEANWHILE}" for n in meanwhile]


@pytest.mark.parametrize("dies", ["finetune", "finetune-2"])
def test_a_step_that_was_killed_runs_again_alone(dies: str, turn: Turn, events: Path, tmp_path: Path):
    """Whichever of two steps is killed, the run goes on as one step after the other, with the lines of one step after the other."""
    steps, order = Steps(tmp_path / "steps", dies), ("finetune", "pretrain", "finetune-2")
    for name in order:
        recorder = turn(name, steps)
    assert steps.begun.count(dies) == 2 and steps.begun.count("pretrain") == 1
    assert [recorder.tasks[name]["status"] for name in order] == ["SUCCESS"] * 3
    assert [line for line in lines(events) if line.endswith(" done")] == [f"task/{name} done" for name in order]
    assert [line for line in lines(events) if MEANWHILE in line] == [f"task/pretrain note {MEANWHILE}"]
