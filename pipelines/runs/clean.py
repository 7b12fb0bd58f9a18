"""Removal of old runs from a work folder.

Outputs of a task are shared: a later run that reuses them points at the folder of the earlier one. So a run is removed with
those task folders that no kept run needs. The champion, challengers and earlier versions have copies of their own in the state
folder, which is never touched. The runs of the champion, of challengers and of running experiments are kept nevertheless, for
comparisons and for `thinktwice bundle challenger`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.run import QUARANTINE, only_run
from pipelines.runs.records import PIPELINE, REUSE, Run, TaskFolder, last_needs, require_runs
from thinktwice.errors import PipelineError
from thinktwice.experiment.record import RECORD, ended_experiments, read_lines, state_of
from thinktwice.files import read_json
from thinktwice.release.challenger import MIN_HASH, versions
from thinktwice.release.champion import read_champion

EXPERIMENTS = "experiments"  # in the work folder
OUTPUTS = ".outputs"  # file of the cache beside an entry


@dataclass(frozen=True)
class Removal:
    """A run to remove; ``quarantined`` rows of its own quarantine go with it."""

    run: Run
    size: int  # bytes, of what no other run needs
    quarantined: int


@dataclass(frozen=True)
class Plan:
    """What :func:`clean` removes and keeps.

    Attributes:
        removals: runs to remove, oldest first.
        kept: (run, reasons), oldest first.
        tasks: task folders to remove, those of killed runs included.
        entries: files of the cache that name them.
        size: bytes of everything that is removed.
    """

    removals: tuple[Removal, ...]
    kept: tuple[tuple[Run, tuple[str, ...]], ...]
    tasks: tuple[Path, ...]
    entries: tuple[Path, ...]
    size: int


def plan(work: Path, state_dir: Path, keep: int) -> Plan:
    """What can be removed when the newest ``keep`` runs are kept, and all that something needs. No run may be active.

    Raises:
        PipelineError: there is no run, or a file that says what a kept run needs cannot be read.
        BundleError, ExperimentError: the same of the state folder or of an experiment.
    """
    runs = require_runs(work, locked=True)
    last_name, last_folders = last_needs(work)
    needed = _needed_bundles(work, state_dir)
    kept: list[tuple[Run, tuple[str, ...]]] = []
    for place, run in enumerate(runs):
        why = [f"among the newest {keep}"] if place >= len(runs) - keep else []
        why += ["the last finished run"] if run.name == last_name else []
        why += [purpose for names, purpose in needed if _is_one_of(run, names)]
        if why:
            kept.append((run, tuple(dict.fromkeys(why))))
    for run, reasons in kept:
        if run.damage:
            raise PipelineError(
                f"{run.folder} is kept ({reasons[0]}) and what it needs is unknown, {run.damage}: restore it, or remove that folder"
            )
    keeps = {run.name for run, _ in kept}
    folders = last_folders.union(*(run.needs for run, _ in kept))
    removed = [run for run in runs if run.name not in keeps]
    owners = _owners(work, runs, keeps, folders)
    sizes = {path: _size(path) for path in owners}
    entries = tuple(_entries(work, set(owners)))
    removals = tuple(
        Removal(
            run,
            _size(run.folder) + sum(sizes[path] for path, owner in owners.items() if owner == run.name),
            sum(_quarantined(path) for path, owner in owners.items() if owner == run.name),
        )
        for run in removed
    )
    size = sum(sizes.values()) + sum(_size(run.folder) for run in removed) + sum(map(_size, entries))
    return Plan(removals, tuple(kept), tuple(owners), entries, size)


def clean(work: Path, state_dir: Path, keep: int, agreed: Plan) -> None:
    """Remove what the plan ``agreed`` says. A clean-up that was killed is finished by the next one.

    Raises:
        PipelineError: a run works in the folder, or the plan is not the same any more; otherwise see :func:`plan`.
    """
    require_runs(work)  # before the lock makes the folder
    with only_run(work):
        made = plan(work, state_dir, keep)
        if made != agreed:
            raise PipelineError(
                f"the runs in {work} have changed meanwhile: nothing was removed, run the command again"
            )
        for entry in made.entries:  # first, so that no entry promises an output that is gone
            entry.unlink(missing_ok=True)
        for task in made.tasks:
            shutil.rmtree(task)
            if not any(task.parent.iterdir()):
                task.parent.rmdir()
        for removal in made.removals:  # last: until then the run is listed
            shutil.rmtree(removal.run.folder)


def _needed_bundles(work: Path, state_dir: Path) -> list[tuple[set[str], str]]:
    """Names of bundles (hash, the beginning of a hash, or version) and why their runs are kept."""
    champion = read_champion(state_dir)
    found = [] if champion is None else [({champion.info.bundle_hash}, "of the champion")]
    for version in versions(state_dir):
        if version.challenger is not None:
            hashes = {version.bundle_hash, *filter(None, [version.challenger.champion])}
            found.append((hashes, f"of the challenger {version.bundle_hash[:12]}"))
    ended = ended_experiments(work / EXPERIMENTS)
    for record in sorted((work / EXPERIMENTS).glob(f"*/{RECORD}")):
        lines = read_lines(record)
        file = state_of(lines).file if lines else None
        if file is not None and file.name not in ended:
            found.append(({arm.bundle for arm in file.arms}, f"in the experiment {file.name}"))
    return found


def _is_one_of(run: Run, names: set[str]) -> bool:
    if not run.bundle_hash:
        return False
    ingested = (run.tasks or {}).get("ingest")
    version = None if ingested is None else ingested.outputs.get("model_version")
    return any(
        name == version or (len(name) >= MIN_HASH and run.bundle_hash.startswith(name.lower())) for name in names
    )


def _owners(work: Path, runs: list[Run], keeps: set[str], needed: frozenset[TaskFolder]) -> dict[Path, str]:
    """Task folders to remove -> name of the run that they go with; "" for the rest of a run that is listed no more.

    A folder that no result names is of a run that was killed, to be continued by the next one: it belongs to the run that was
    working when the folder was written.
    """
    listed: dict[TaskFolder, str] = {}
    for run in runs:
        for folder in run.needs:
            listed.setdefault(folder, run.name)
    found: dict[Path, str] = {}
    for task in sorted((work / PIPELINE).glob("*/*")):
        key = (task.parent.name, task.name)
        if key in needed or not task.is_dir() or task.is_symlink() or task.parent.is_symlink():
            continue
        owner = listed.get(key) or _working_at(runs, task.stat().st_mtime)
        if owner not in keeps:
            found[task] = owner
    return found


def _working_at(runs: list[Run], time: float) -> str:
    return next((run.name for run in reversed(runs) if run.started <= time), "")


def _entries(work: Path, tasks: set[Path]) -> Iterator[Path]:
    """Files of the cache whose outputs are in one of the task folders."""
    keys = {(task.parent.name, task.name) for task in tasks}
    for entry in sorted((work / REUSE).glob("*.json")):
        try:
            uris = list(_uris(read_json(entry)))
        except (OSError, ValueError):
            continue  # the cache reads no damaged entry either
        if any(tuple(Path(uri).parts[-3:-1]) in keys for uri in uris):
            yield from (path for path in (entry, entry.with_suffix(OUTPUTS)) if path.is_file())


def _uris(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("uri"), str):
            yield value["uri"]
        for inner in value.values():
            yield from _uris(inner)


def _quarantined(task: Path) -> int:
    file = task / "quarantine" / QUARANTINE
    try:
        return int(read_json(file)["rows_quarantined"]) if file.is_file() else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(_size(entry) for entry in path.iterdir()) if path.is_dir() else 0
