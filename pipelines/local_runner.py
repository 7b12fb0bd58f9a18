"""The process behind a local run: `python -m pipelines.local_runner REQUEST.json`.

It runs the graph under KFP's local runner with everything KFP and the steps print going to its own stdout (the caller
points that at a log file), and writes what happened to a result file. KFP's local runner returns only declared pipeline
outputs, so two of its functions are wrapped here: the one that executes a task (to learn which task runs and what it
gave) and the one that finds the cache (to use one that looks at the content of a folder). A third, which starts the process
of a step, is replaced in `warm_steps.py`. Nothing else of it is touched.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from kfp import dsl, local
from kfp.local import cache as kfp_cache
from kfp.local import status
from kfp.local.orchestrator import task_executor

from pipelines import warm_steps
from pipelines.ctr_training import build_pipeline
from pipelines.local_cache import CheckedCache
from thinktwice import progress
from thinktwice.console.stages import TASK_PREFIX
from thinktwice.files import read_json, write_json


def notes_of(progress_file: Path, start: int) -> list[str]:
    """The texts of the notes written to the progress file after byte `start`."""
    if not progress_file.exists():
        return []
    with progress_file.open("rb") as handle:
        handle.seek(start)
        events = [json.loads(line) for line in handle]
    return [event["text"] for event in events if event["event"] == "note"]


class Recorder:
    """Watches the tasks of a run: emits a stage for each and keeps what it gave."""

    def __init__(self, cache: CheckedCache, progress_file: Path) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self._cache = cache
        self._progress_file = progress_file
        self._execute = task_executor.execute_single_task
        self._put = cache.put

    def execute(self, task_name: str, **rest: Any) -> tuple[dict[str, Any], status.Status]:
        """Stand-in for KFP's `execute_single_task`."""
        stage = TASK_PREFIX + task_name
        self._cache.task = task_name
        started = time.monotonic()
        outputs: dict[str, Any] = {}
        result = status.Status.FAILURE
        try:
            with progress.stage(stage):
                start = self._progress_file.stat().st_size if self._progress_file.exists() else 0

                def put(key: str, outputs: dict[str, Any]) -> None:
                    self._cache.notes = notes_of(self._progress_file, start)
                    self._put(key, outputs)

                self._cache.put = put  # type: ignore[method-assign]
                outputs, result = self._execute(task_name=task_name, **rest)
                if task_name in self._cache.hits:
                    progress.note(stage, "reused")
                    for text in self._cache.notes:
                        progress.note(stage, text)
                if result is not status.Status.SUCCESS:
                    raise TaskFailed
        except TaskFailed:
            pass
        self.tasks[task_name] = {
            "status": result.name,
            "reused": task_name in self._cache.hits,
            "seconds": round(time.monotonic() - started, 3),
            "outputs": {
                name: value.uri if isinstance(value, dsl.Artifact) else value for name, value in outputs.items()
            },
        }
        return outputs, result


class TaskFailed(Exception):
    """Ends the stage of a failed task as failed; never leaves this module."""


def main(request_file: str) -> int:
    """Run one request; 0 when every task that was due has succeeded."""
    # A run started from a background job inherits an ignored SIGINT, and so would every step.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().setLevel(logging.INFO)
    request = read_json(request_file)
    warm_steps.install()
    cache = CheckedCache(request["cache_root"])
    recorder = Recorder(cache, Path(os.environ[progress.VARIABLE]))
    kfp_cache.get_local_cache = lambda: cache
    task_executor.execute_single_task = recorder.execute
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
