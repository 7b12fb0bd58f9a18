"""What local runs left in a work folder."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.run import TaskResult, reasons_of
from thinktwice.console.options import LAST_RUN
from thinktwice.data.sources.paths import SEPARATOR
from thinktwice.errors import BundleError, PipelineError, ThinktwiceError, reason
from thinktwice.files import read_json
from thinktwice.recipes import RECIPES
from thinktwice.release.blessing import read_blessing
from thinktwice.release.bundle import bundle_hash

RUNS, PIPELINE, REUSE, LOCK = "runs", "pipeline", "reuse", "lock"  # in the work folder
NAME_FORMAT = "%Y-%m-%dT%H-%M-%S-%f"  # of the folder of a run: its start, UTC
SECONDS = 19  # characters of a name without its fraction of a second
MAX_SETTINGS = 3  # settings of a recipe file that are named
LATEST = "last"

#: Output of a task, relative to the pipeline folder: (folder of one execution of the graph, task).
TaskFolder = tuple[str, str]


class Arguments(BaseModel):
    """The arguments of a run, as far as they describe it; runs of earlier versions may lack some."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str = ""
    source_path: str = ""
    schema_path: str = ""
    limit: int = 0
    since: str = ""
    until: str = ""
    seed: int = 0
    split: str = "time"
    recipe: str = ""
    backbone: str = ""
    pretraining: str = ""
    test_time_mode: str = ""
    max_cost: float = 0.0
    code_version: str = ""
    data_version: str = ""

    @property
    def data(self) -> str:
        """The log in a few words."""
        names = [Path(path).name for path in self.source_path.split(SEPARATOR) if path]
        words = [" ".join(filter(None, [self.source, names[0] if names else ""]))]
        if len(names) > 1:
            words[0] += f" and {len(names) - 1} more"
        words += [f"since {self.since}"] * bool(self.since) + [f"until {self.until}"] * bool(self.until)
        words += [f"first {self.limit:,} rows"] * bool(self.limit)
        words += [f"split {self.split}"] * (self.split != "time")
        return ", ".join(words)

    @property
    def training(self) -> str:
        """Recipe and test-time mode in a few words, without the seed."""
        words = [_recipe_words(self.recipe), *filter(None, [self.backbone, self.pretraining])]
        return ", ".join([*words, *([f"test time {self.test_time_mode}"] if self.test_time_mode else [])])

    @property
    def settings(self) -> str:
        """Everything that decides the model, but for the seed."""
        return self.model_dump_json(exclude={"seed"})


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    arguments: Arguments
    pipeline_root: str


class _Outcome(BaseModel):
    """``result.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ended_well: bool = False
    tasks: dict[str, TaskResult]


@dataclass(frozen=True)
class Run:
    """A run in a work folder.

    Attributes:
        folder: ``WORK/runs/NAME``.
        arguments: None if its request cannot be read.
        tasks: results of its tasks; None if it was killed before it wrote them.
        damage: why a file of it cannot be read; empty if all can.
        active: it is still running.
    """

    folder: Path
    arguments: Arguments | None
    pipeline_root: str
    tasks: dict[str, TaskResult] | None
    damage: str = ""
    active: bool = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def started(self) -> float:
        """Unix seconds."""
        return datetime.strptime(self.name, NAME_FORMAT).replace(tzinfo=timezone.utc).timestamp()

    @cached_property
    def needs(self) -> frozenset[TaskFolder]:
        """The task folders with its outputs, its own and reused ones."""
        return task_folders(self.tasks or {}, self.pipeline_root)

    def output(self, task: str, name: str) -> Path | None:
        """An output of a successful task in this work folder, which may have been moved; None if it does not exist."""
        result = (self.tasks or {}).get(task)
        path = None if result is None or result.status != "SUCCESS" else result.outputs.get(name)
        if not isinstance(path, str):
            return None
        place = _relative(path, self.pipeline_root)
        found = None if place is None else self.folder.parent.parent / PIPELINE / place
        return found if found is not None and found.exists() else None

    @property
    def bundle(self) -> Path | None:
        return self.output("evaluate", "bundle")

    @property
    def training_set(self) -> Path | None:
        return self.output("build-training-set", "training_set")

    @cached_property
    def bundle_hash(self) -> str:
        """Hash of its bundle; empty if there is none."""
        try:
            return "" if self.bundle is None else bundle_hash(self.bundle)
        except BundleError:
            return ""

    @property
    def verdict(self) -> str:
        """How it ended, in one line."""
        if self.active:
            return "running"
        if self.damage:
            return f"unreadable: {self.damage}"
        if self.tasks is None:
            return "stopped"
        if failed := [name for name, task in self.tasks.items() if task.status == "FAILURE"]:
            return f"failed in the step {failed[0]}"
        checked = self.tasks.get("validate")
        if checked is not None and checked.outputs.get("Output") is False:
            return _with_reasons("refused by the validation", self._reasons("validate", "verdict_file"))
        if "bless" not in self.tasks:
            return "stopped"
        if self.tasks["bless"].outputs.get("Output") is True:
            return "blessed and deployed" if "deploy" in self.tasks else "blessed"
        return _with_reasons("not blessed", self._reasons("bless", "blessing"))

    def _reasons(self, task: str, output: str) -> list[str]:
        path = self.output(task, output)
        try:
            if path is None:
                return []
            return list(read_blessing(path).reasons) if task == "bless" else reasons_of(path)
        except (ThinktwiceError, OSError, ValueError):
            return []


def runs_of(work: Path, *, locked: bool = False) -> list[Run]:
    """All runs of a work folder, oldest first. Other folders in ``WORK/runs`` are not listed.

    Args:
        locked: the caller holds the lock of the work folder, so no run is active.
    """
    root = work / RUNS
    folders = sorted(path for path in root.iterdir() if _is_run(path)) if root.is_dir() else []
    running = not locked and is_running(work)
    return [_run(folder, active=running and folder == folders[-1]) for folder in folders]


def require_runs(work: Path, *, locked: bool = False) -> list[Run]:
    """Like :func:`runs_of`.

    Raises:
        PipelineError: there is none.
    """
    found = runs_of(work, locked=locked)
    if not found:
        raise PipelineError(f"{work} contains no run: start one with `thinktwice pipeline run`, or set --work")
    return found


def named(runs: list[Run], name: str) -> Run:
    """The run of a name, of the beginning of a name, or the newest one for ``last``.

    Raises:
        PipelineError: there is none, or several.
    """
    if name == LATEST:
        return runs[-1]
    found = [run for run in runs if run.name == name] or [run for run in runs if name and run.name.startswith(name)]
    if not found:
        raise PipelineError(f"there is no run {name!r}: `thinktwice runs` lists the names")
    if len(found) > 1:
        raise PipelineError(
            f"{name!r} is the beginning of {len(found)} runs: give more of the name, as in {found[-1].name}"
        )
    return found[0]


def short_names(runs: list[Run]) -> dict[str, str]:
    """Name -> the name without the fraction of a second where that is unique."""
    cut = [run.name[:SECONDS] for run in runs]
    return {run.name: short if cut.count(short) == 1 else run.name for run, short in zip(runs, cut, strict=True)}


def last_needs(work: Path) -> tuple[str, frozenset[TaskFolder]]:
    """Name and task folders of the last finished run; an empty name and nothing if there is none.

    Raises:
        PipelineError: its record is damaged.
    """
    record = work / LAST_RUN
    if not record.exists():
        return "", frozenset()
    try:
        content = read_json(record)
        tasks = {name: TaskResult.model_validate(task) for name, task in content["tasks"].items()}
        name = Path(content["log"]).parent.name
        roots = {str(Path(content["log"]).parent.parent.parent / PIPELINE)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(
            f"{record} cannot be read ({reason(error)}): run `thinktwice pipeline run` again, which writes it anew"
        ) from error
    return name, frozenset(folder for root in roots for folder in task_folders(tasks, root))


def is_running(work: Path) -> bool:
    """Whether a run holds the lock of the work folder."""
    try:
        with (work / LOCK).open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def task_folders(tasks: dict[str, TaskResult], pipeline_root: str) -> frozenset[TaskFolder]:
    """The task folders that outputs of ``tasks`` are in."""
    places = (_relative(text, pipeline_root) for task in tasks.values() for text in _texts(task.outputs.values()))
    return frozenset((place.parts[0], place.parts[1]) for place in places if place is not None and len(place.parts) > 1)


def _relative(path: str, root: str) -> Path | None:
    place = Path(path)
    if not root or not place.is_relative_to(root):
        return None
    inside = place.relative_to(root)
    return None if ".." in inside.parts else inside


def _texts(values: Iterable[object]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str))


def _is_run(path: Path) -> bool:
    try:
        datetime.strptime(path.name, NAME_FORMAT)
    except ValueError:
        return False
    return path.is_dir() and not path.is_symlink()


def _run(folder: Path, *, active: bool) -> Run:
    request, outcome, damage = None, None, ""
    try:
        request = _Request.model_validate(read_json(folder / "request.json"))
    except (OSError, ValueError) as error:
        damage = f"request.json ({reason(error)})"
    try:
        if not active and (folder / "result.json").exists():
            outcome = _Outcome.model_validate(read_json(folder / "result.json"))
    except (OSError, ValueError) as error:
        damage = f"result.json ({reason(error)})"
    return Run(
        folder,
        None if request is None else request.arguments,
        "" if request is None else request.pipeline_root,
        None if outcome is None else outcome.tasks,
        damage,
        active,
    )


def _with_reasons(what: str, reasons: list[str]) -> str:
    return f"{what}: {'; '.join(reasons)}" if reasons else what


def _recipe_words(recipe: str) -> str:
    """The name of a recipe; of settings written out, the most similar named recipe and what differs from it."""
    if not recipe.lstrip().startswith("{"):
        return recipe
    try:
        given = dict(_leaves(json.loads(recipe)))
    except ValueError:
        return "a recipe of its own"
    options = []
    for name, make in RECIPES.items():
        base = dict(_leaves(json.loads(make().model_dump_json())))
        options.append((name, [key for key in given if given[key] != base.get(key)]))
    name, changed = min(options, key=lambda option: len(option[1]))
    shown = [f"{key}={_word(given[key])}" for key in changed[:MAX_SETTINGS]]
    more = [f"{len(changed) - MAX_SETTINGS} more"] if len(changed) > MAX_SETTINGS else []
    return f"{name} with {', '.join([*shown, *more])}" if changed else name


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
