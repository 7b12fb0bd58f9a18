"""Process of a local run: `python -m pipelines.local_runner REQUEST.json`.

It runs the graph under KFP's local runner. All output of KFP and the steps goes to its stdout (the caller redirects that to a
log file), and the results go to a result file. KFP's local runner returns only declared pipeline outputs, so three of its
functions are wrapped: the one that executes a task (to record the task and its outputs), the one that starts a process (to
record its exit status) and the one that returns the cache (to use one that checks the content of folders). Starting the process
of a step is replaced in `warm_steps.py`. Nothing else in KFP is changed. Tasks that do not depend on the running one are executed beside
it (`beside.py`).
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp import dsl, local
from kfp.local import cache as kfp_cache
from kfp.local import status, subprocess_task_handler
from kfp.local.orchestrator import task_executor

from pipelines import warm_steps
from pipelines.beside import Finished, Options, TasksBeside, begin_beside, was_killed
from pipelines.ctr_training import build_pipeline
from pipelines.local_cache import CheckedCache
from pipelines.local_remains import remove_unfinished
from thinktwice import progress
from thinktwice.console.events import events_in
from thinktwice.console.output import shown
from thinktwice.console.stages import TASK_PREFIX
from thinktwice.files import atomic_file, read_json, write_json

SAID = {"note": progress.note, "message": progress.tell}  # kind of message -> function that repeats it


def said_since(progress_file: Path, start: int) -> list[list[str]]:
    """(kind, text) of the notes and messages written to the progress file after byte `start`."""
    if not progress_file.exists():
        return []
    with progress_file.open("rb") as handle:
        handle.seek(start)
        events = events_in(handle.read())
    return [[event["event"], event["text"]] for event in events if event["event"] in SAID]


class Recorder:
    """Observes the tasks of a run: emits a stage for each and records its result. While one runs, others are executed beside it."""

    def __init__(self, cache: CheckedCache, reports: dict[str, str]) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self._cache = cache
        self._reports = reports
        self._execute = task_executor.execute_single_task
        self._run_process = subprocess_task_handler.run_local_subprocess
        self._put = cache.put
        self._started = time.time()
        self._exit_status: int | None = None
        self._running: tuple[str, Options] | None = (
            None  # the task that is executed here, if it may have others beside it
        )
        self._beside: list[TasksBeside] = []

    @property
    def _progress_file(self) -> Path:
        return Path(os.environ[progress.VARIABLE])

    def run_process(self, full_command: Sequence[str], env_vars: Mapping[str, str] | None = None) -> int:
        """Replacement for KFP's `run_local_subprocess`, which does not report the exit status."""
        if self._running is not None and not self._begun():
            if (call := warm_steps.parsed(full_command)) is not None:
                warm_steps.warm_up(call.function)  # once for both processes
            self._begin_beside(*self._running)
        self._exit_status = self._run_process(full_command, env_vars)
        if was_killed(self._exit_status) and self._begun():
            self.stop()  # together they may have needed more memory than there is: each again, alone
            self._exit_status = self._run_process(full_command, env_vars)
        return self._exit_status

    def stop(self) -> None:
        """End what is still executed beside the run."""
        for tasks in self._beside:
            tasks.stop()

    def _begun(self) -> list[TasksBeside]:
        return [tasks for tasks in self._beside if not tasks.ended]

    def _begin_beside(self, name: str, options: Options) -> None:
        begun = begin_beside(name, options, self.tasks, self._begun(), self._execute_beside)
        if begun is not None:
            self._beside.append(begun)

    def execute(self, task_name: str, **options: Any) -> tuple[dict[str, Any], status.Status]:
        """Replacement for KFP's `execute_single_task`."""
        for tasks in self._begun():
            if not tasks.has(task_name):
                continue
            if not tasks.finished(task_name):
                self._begin_beside(task_name, options)  # this process does nothing but wait
            if (found := tasks.take(task_name)) is not None:
                self.tasks[task_name] = found.record
                return found.outputs, found.status
            remove_unfinished(Path(options["pipeline_root"]), since=self._started)
        self._running = task_name, options
        return self._execute_here(task_name, **options)

    def _execute_beside(self, task_name: str, options: Options) -> Finished:
        """Execute a task in a fork of this process, beside another one."""
        self._running = None
        return Finished(*self._execute_here(task_name, **options), self.tasks[task_name])

    def _execute_here(self, task_name: str, **options: Any) -> tuple[dict[str, Any], status.Status]:
        stage = TASK_PREFIX + task_name
        self._cache.task = task_name
        self._exit_status = None
        started = time.monotonic()
        outputs: dict[str, Any] = {}
        result = status.Status.FAILURE
        try:
            with progress.stage(stage):
                start = self._progress_file.stat().st_size if self._progress_file.exists() else 0

                def put(key: str, outputs: dict[str, Any]) -> None:
                    self._cache.said = said_since(self._progress_file, start)
                    self._put(key, outputs)

                self._cache.put = put  # type: ignore[method-assign]
                outputs, result = self._execute(task_name=task_name, **options)
                if task_name in self._cache.hits:
                    progress.note(stage, "reused")
                    for kind, text in self._cache.said:
                        SAID[kind](stage, text)
                if result is not status.Status.SUCCESS:
                    raise TaskFailedError
                self._hand_out_report(task_name, outputs, start)
        except TaskFailedError:
            pass
        self.tasks[task_name] = {
            "status": result.name,
            "reused": task_name in self._cache.hits,
            "exit_status": self._exit_status,
            "seconds": round(time.monotonic() - started, 3),
            "outputs": {
                name: value.uri if isinstance(value, dsl.Artifact) else value for name, value in outputs.items()
            },
        }
        return outputs, result

    def _hand_out_report(self, task_name: str, outputs: dict[str, Any], start: int) -> None:
        """Copy the HTML report of a step and its numbers to the reports folder, and print its path if the step printed a message.

        KFP names a report without a suffix, and a browser shows such a file as text.
        """
        if task_name not in self._reports:
            return
        target = Path(self._reports[task_name])
        with atomic_file(target) as temporary:
            shutil.copyfile(outputs["report"].path, temporary)
        numbers = sorted(Path(outputs["numbers"].path).iterdir()) if "numbers" in outputs else []
        for file in numbers:  # the numbers of the report, as JSON and CSV
            with atomic_file(target.with_suffix(file.suffix)) as temporary:
                shutil.copyfile(file, temporary)
        if any(kind == "message" for kind, _ in said_since(self._progress_file, start)):
            progress.tell(TASK_PREFIX + task_name, f"full report: {shown(target)}")


class TaskFailedError(Exception):
    """Marks the stage of a failed task as failed; internal to this module."""


@progress.recorded
def main(request_file: str) -> int:
    """Run one request. Returns 0 if all tasks succeeded."""
    # A run started from a background job inherits an ignored SIGINT, and so would every step.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().setLevel(logging.INFO)
    request = read_json(request_file)
    warm_steps.install()
    cache = CheckedCache(request["cache_root"])
    recorder = Recorder(cache, request["reports"])
    kfp_cache.get_local_cache = lambda: cache
    task_executor.execute_single_task = recorder.execute
    subprocess_task_handler.run_local_subprocess = recorder.run_process
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=request["pipeline_root"],
        workspace_root=request["workspace_root"],
        enable_caching=True,
        cache_root=request["cache_root"],
    )
    ended_well = False
    try:
        build_pipeline("local")(**request["arguments"])
        ended_well = True
    except RuntimeError as error:  # raised by KFP when a task has failed; the task has reported the reason
        logging.error("%s", error)
    finally:
        recorder.stop()
        write_json(request["result_file"], {"ended_well": ended_well, "tasks": recorder.tasks})
    return 0 if ended_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
