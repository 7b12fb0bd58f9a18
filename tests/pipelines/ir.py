"""Read what the compiler wrote, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TRAINING_TASKS = {"pretrain", "finetune", "finetune-2"}
EFFECTS = {"bless", "deploy", "challenge"}
TASKS = {
    "ingest", "validate", "materialize", "build-training-set", "pretrain", "finetune", "finetune-2",
    "fit-test-time", "evaluate", "bless", "package", "deploy",
}  # fmt: skip
CANARY = "deploy-to-cluster"
GRAPH = TASKS | {"challenge", CANARY}  # these only where they are asked for

LAUNCHES = {"launch-trainjob", "launch-trainjob-2", "launch-trainjob-3"}
REMOVAL = "remove-trainjobs"
NEVER_CACHED = EFFECTS | LAUNCHES | {CANARY, REMOVAL}


def tasks_of(profile: str) -> set[str]:
    """Names of the tasks under a profile."""
    return GRAPH if profile != "gpu-trainjob" else GRAPH - TRAINING_TASKS | LAUNCHES | {REMOVAL}


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline spec, and the Kubernetes settings by task ({} when there are none)."""
    spec, *platforms = yaml.safe_load_all(path.read_text())
    if not platforms:
        return spec, {}
    executors = platforms[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return spec, {name.removeprefix("exec-"): settings for name, settings in executors.items()}


def is_cached(task: dict[str, Any]) -> bool:
    """Whether KFP may take the outputs of a task from an earlier run."""
    return bool(task.get("cachingOptions", {}).get("enableCache", False))


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Container of every task, by task name."""
    return {
        name.removeprefix("exec-"): executor["container"]
        for name, executor in spec["deploymentSpec"]["executors"].items()
    }


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every leaf task with its options, from the root and from the conditions inside."""
    found: dict[str, dict[str, Any]] = {}
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    for dag in dags:
        for name, task in dag["tasks"].items():
            if not task["componentRef"]["name"].startswith(("comp-condition", "comp-exit-handler")):
                found[name] = task
    return found
