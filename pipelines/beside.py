"""Tasks of a local run beside another one, where a core is idle.

KFP's local runner executes one task at a time, and a task computes with one thread (:mod:`thinktwice.threads`). While a task runs, those
that do not depend on it are executed in a fork of the runner. When the turn of one of them comes, its result is taken over and what it
has reported is repeated, so that a run reads like one task after the other. A fork that cannot be started, or ends without a result,
costs nothing but time: the task is then executed in its turn.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from kfp.local import status
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.local_cache import tree_bytes
from pipelines.warm_steps import die_with
from thinktwice import progress
from thinktwice.console.events import EventTail
from thinktwice.console.stages import TASK_PREFIX

MEANWHILE = "at the same time"  # note of a task that ran beside another one
POLL = 0.1  # seconds between looks at what a task reports

Components = Mapping[str, pipeline_spec_pb2.ComponentSpec]
Tasks = Mapping[str, pipeline_spec_pb2.PipelineTaskSpec]
Options = dict[str, Any]  # of KFP's `execute_single_task`
Record = dict[str, Any]  # what a run records about a task


class Finished(NamedTuple):
    """A task that has ended: its outputs as KFP returns them, its status, and its record."""

    outputs: dict[str, Any]
    status: status.Status
    record: Record


def begin_beside(
    name: str,
    options: Options,
    records: Mapping[str, Record],
    begun: Collection[TasksBeside],
    execute: Callable[[str, Options], Finished],
) -> TasksBeside | None:
    """Begin what may be executed beside the task ``name``; None: there is nothing.

    Args:
        options: of that task.
        records: of the tasks whose turn is over.
        begun: other tasks that are executed beside the run.
        execute: executes a task with its options, in the fork.
    """
    done = [task for task, record in records.items() if record["status"] == status.Status.SUCCESS.name]
    tasks = siblings(name, options["components"])
    running = {name, *(other for other in tasks if any(of.has(other) for of in begun))}
    names = independent(running, tasks, done, options["components"])
    if not names:
        return None
    read = {task for other in (name, *names) for task in tasks[other].dependent_tasks if task in records}
    num_bytes = sum(tree_bytes(Path(str(value))) for task in read for value in records[task]["outputs"].values())

    def executed(other: str) -> Finished | None:
        found = execute(other, {**options, "task_spec": tasks[other]})
        for key, value in found.outputs.items():
            options["io_store"].put_task_output(other, key, value)
        return None if was_killed(found.record["exit_status"]) else found

    return TasksBeside(names, executed, lambda: allowed(num_bytes), Path(tempfile.mkdtemp(prefix="beside-")))


def was_killed(exit_status: int | None) -> bool:
    """Whether a step was killed, as the system does when memory runs out: alone it may have enough."""
    return exit_status == -signal.SIGKILL


def allowed(num_bytes: int) -> bool:
    """Whether tasks that read so many bytes may be executed beside another one. Asked in the fork, where its imports stay."""
    from thinktwice.train.beside import may_train_beside

    return may_train_beside(num_bytes)


def siblings(name: str, components: Components) -> Tasks:
    """The tasks in the same part of the graph as the task ``name``; none in the outermost part, whose tasks follow each other."""
    parts = (part.dag.tasks for part in components.values() if part.WhichOneof("implementation") == "dag")
    return next((tasks for tasks in parts if name in tasks), {})


def independent(running: Collection[str], tasks: Tasks, done: Collection[str], components: Components) -> list[str]:
    """Those of ``tasks`` that may be executed beside the ``running`` ones, each after those that it depends on.

    They depend on nothing but each other and the tasks that are ``done``, have no condition and, being cached, no effect outside their
    outputs.
    """
    plain = {
        other: set(task.dependent_tasks)
        for other, task in tasks.items()
        if other not in (*running, *done)
        and task.caching_options.enable_cache
        and not task.trigger_policy.condition
        and task.WhichOneof("iterator") is None
        and components[task.component_ref.name].WhichOneof("implementation") == "executor_label"
    }
    found: list[str] = []
    while ready := [n for n in sorted(plain) if n not in found and plain[n] <= {*done, *found}]:
        found += ready
    return found


class TasksBeside:
    """Tasks that are executed one after the other in a process of their own.

    Args:
        names: in the order of their execution.
        execute: executes one, in the fork. None: it ended without a result, for example because it was killed.
        allows: asked in the fork whether it may begin.
        folder: for what they report; it exists.
    """

    def __init__(
        self,
        names: Iterable[str],
        execute: Callable[[str], Finished | None],
        allows: Callable[[], bool],
        folder: Path,
    ) -> None:
        self._left, self._folder = list(names), folder
        self._results, writer = multiprocessing.get_context("fork").Pipe(duplex=False)
        self._process = multiprocessing.get_context("fork").Process(
            target=_in_child, args=(tuple(self._left), execute, allows, folder, writer, os.getpid())
        )
        with warnings.catch_warnings(), contextlib.suppress(OSError):  # without it, nobody holds the other end
            # From Python 3.12 on: a library's allocator has a thread, which takes care of forks itself.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        writer.close()
        self._found: dict[str, Finished] = {}

    @property
    def ended(self) -> bool:
        """Whether every result was taken, so that nothing is executed any more."""
        return not self._left

    def has(self, name: str) -> bool:
        """Whether the result of a task is still to be taken."""
        return name in self._left

    def finished(self, name: str) -> bool:
        """Whether a task has ended with a result."""
        for _ in self._left:
            self._receive(0)
        return name in self._found

    def take(self, name: str) -> Finished | None:
        """The result of a task; waits for it and repeats its events and its output. None: the task must be executed here."""
        stage, tail, begun = TASK_PREFIX + name, EventTail(_events(self._folder, name)), False
        closing: list[dict[str, Any]] = []  # the end of the task, which counts with its result alone
        ended = False
        while not ended:
            ended = name in self._found or not self._receive(POLL)
            for event in tail.read():
                kind = event["event"]
                if event["stage"] == stage and kind in ("done", "failed"):
                    closing.append(event)
                elif begun or kind != "progress":  # of the past only what is worth a line
                    progress.repeat(event)
            begun = True
        self._left.remove(name)
        output = _output(self._folder, name)
        if output.exists():
            print(output.read_text("utf-8", errors="replace"))  # noqa: T201  (the log of the run)
        if (found := self._found.get(name)) is None:
            return None
        if found.status is status.Status.SUCCESS and not found.record["reused"]:
            progress.note(stage, MEANWHILE)
        for event in closing:
            progress.repeat(event)
        return found

    def _receive(self, seconds: float) -> bool:
        """Wait for a result for some time. Returns False at the end of the process."""
        try:
            if self._results.poll(seconds):
                name, result = self._results.recv()
                self._found[name] = result
        except (EOFError, OSError):
            return False
        return True

    def stop(self) -> None:
        """End the process, and with it the task that it executes. Tasks that have ended keep their results."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        while self._receive(POLL):
            pass
        self._results.close()


def _in_child(
    names: tuple[str, ...],
    execute: Callable[[str], Finished | None],
    allows: Callable[[], bool],
    folder: Path,
    writer: Connection,
    parent: int,
) -> None:
    die_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger().handlers.clear()  # they write to the log of the run
    with contextlib.suppress(BaseException):  # the task is then executed by the parent, which reports the error
        if allows():
            for name in names:
                os.environ[progress.VARIABLE] = str(_events(folder, name))
                with (
                    _output(folder, name).open("w", encoding="utf-8", buffering=1) as output,
                    contextlib.redirect_stdout(output),
                    contextlib.redirect_stderr(output),
                ):
                    result = execute(name)
                if result is None:
                    break
                writer.send((name, result))
                if result.status is not status.Status.SUCCESS:
                    break
    os._exit(0)


def _events(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"


def _output(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"
