"""The process behind a local run: `python -m pipelines.local_runner REQUEST.json`.

It runs the graph under KFP's local runner with everything KFP and the steps print going to its own stdout (the caller
points that at a log file), and writes what happened to a result file. KFP's local runner returns only declared pipeline
outputs, so three of its functions are wrapped here: the one that executes a task (to learn which task runs and what it
gave), the one that starts a process (to learn how it ended) and the one that finds the cache (to use one that looks at the
content of a folder). How the process of a step is started is replaced in `warm_steps.py`. Nothing else of it is touched.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from kfp import dsl, local
from kfp.local import cache as kfp_cache
from kfp.local import status, subprocess_task_handler
from kfp.local.orchestrator import task_executor

from pipelines import warm_steps
from pipelines.ctr_training import build_pipeline
from pipelines.local_cache import CheckedCache
from thinktwice import progress
from thinktwice.console.events import events_in
from thinktwice.console.output import shown
from thinktwice.console.stages import TASK_PREFIX
from thinktwice.files import atomic_file, read_json, write_json

SAID = {"note": progress.note, "message": progress.tell}  # what a step has to say, and how it is said again


def said_since(progress_file: Path, start: int) -> list[list[str]]:
    """(kind, text) of the notes and messages written to the progress file after byte `start`."""
    if not progress_file.exists():
        return []
    with progress_file.open("rb") as handle:
        handle.seek(start)
        events = events_in(handle.read())
    return [[event["event"], event["text"]] for event in events if event["event"] in SAID]


class Recorder:
    """Watches the tasks of a run: emits a stage for each and keeps what it gave."""

    def __init__(self, cache: CheckedCache, progress_file: Path, reports: dict[str, str]) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self._cache = cache
        self._progress_file = progress_file
        self._reports = reports
        self._execute = task_executor.execute_single_task
        self._run_process = subprocess_task_handler.run_local_subprocess
        self._put = cache.put
        self._exit_status: int | None = None

    def run_process(self, *args: Any, **rest: Any) -> int:
        """Stand-in for KFP's `run_local_subprocess`, which tells nobody how a process ended."""
        self._exit_status = self._run_process(*args, **rest)
        return self._exit_status

    def execute(self, task_name: str, **rest: Any) -> tuple[dict[str, Any], status.Status]:
        """Stand-in for KFP's `execute_single_task`."""
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
                outputs, result = self._execute(task_name=task_name, **rest)
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
        """Copy the page of a step to where it can be opened, and say where, if the step had something to tell.

        KFP names a page without an ending, and a browser shows such a file as text.
        """
        if task_name not in self._reports:
            return
        target = Path(self._reports[task_name])
        with atomic_file(target) as temporary:
            shutil.copyfile(outputs["report"].path, temporary)
        if any(kind == "message" for kind, _ in said_since(self._progress_file, start)):
            progress.tell(TASK_PREFIX + task_name, f"all of it: {shown(target)}")


class TaskFailedError(Exception):
    """Ends the stage of a failed task as failed; never leaves this module."""


@progress.recorded
def main(request_file: str) -> int:
    """Run one request; 0 when every task that was due has succeeded."""
    # A run started from a background job inherits an ignored SIGINT, and so would every step.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().setLevel(logging.INFO)
    request = read_json(request_file)
    warm_steps.install()
    cache = CheckedCache(request["cache_root"])
    recorder = Recorder(cache, Path(os.environ[progress.VARIABLE]), request["reports"])
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
    except RuntimeError as error:  # what KFP raises when a task has failed; the task has said why
        logging.error("%s", error)
    finally:
        write_json(request["result_file"], {"ended_well": ended_well, "tasks": recorder.tasks})
    return 0 if ended_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
