"""Cleanup after a stopped local run."""

from __future__ import annotations

import shutil
from pathlib import Path

EXECUTOR_OUTPUT = "executor_output.json"  # KFP writes it last, when a step has succeeded


def remove_unfinished(pipeline_root: Path, since: float) -> None:
    """Remove the folders of unsuccessful steps, in runs that changed after `since` (Unix seconds)."""
    for run in pipeline_root.glob("*"):
        if not run.is_dir() or run.stat().st_mtime < since:
            continue
        for task in run.iterdir():
            if task.is_dir() and not (task / EXECUTOR_OUTPUT).exists():
                shutil.rmtree(task, ignore_errors=True)
        if not any(run.iterdir()):
            run.rmdir()
