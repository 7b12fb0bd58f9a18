"""Allowed changes: only the coverage of a running experiment may change. Also conflicts between experiments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from thinktwice.errors import ExperimentError
from thinktwice.experiment.file import ExperimentFile

_NEW = {
    "name": "a renamed experiment is a new one: stop this and start that",
    "salt": "another salt moves every unit: it is a new experiment, with a new name",
    "arms": "other arms are a new experiment, with a new name and salt",
    "buckets": "other buckets move units: it is a new experiment, with a new name and salt",
    "exclusive_group": "another group is a new experiment, with a new name and salt",
    "holdout": "another holdout is a new experiment, with a new name and salt",
    "unit": "another unit is a new experiment, with a new name and salt",
}


def forbidden_changes(running: ExperimentFile, new: ExperimentFile, highest: float | None = None) -> list[str]:
    """Reasons why ``new`` must not replace ``running``, one sentence each; empty if it may.

    Args:
        highest: largest coverage the experiment ever had; default that of ``running``.
    """
    before, after = running.model_dump(mode="json"), new.model_dump(mode="json")
    problems = []
    for name in before:
        if name != "coverage" and before[name] != after[name]:
            path, old, value = _first_difference(name, before[name], after[name])
            why = _NEW.get(name, "only coverage may change while an experiment runs")
            problems.append(f"{path} changed from {old!r} to {value!r}: {why}")
    top = running.coverage if highest is None else max(highest, running.coverage)
    if new.coverage and new.coverage < top:
        problems.append(
            f"coverage falls from {top} to {new.coverage}: enrolled units would leave their arm; set 0 to stop, "
            "and start again under a new name and salt"
        )
    if running.coverage == 0 and top > 0 and new.coverage > 0:
        problems.append(
            "the experiment was stopped (coverage 0): a restart is a new experiment, with a new name and salt"
        )
    return problems


def conflicts(files: Sequence[ExperimentFile]) -> list[str]:
    """Conflicts between experiments, finished ones included; empty if there are none.

    Experiments of one exclusive group share their salt, holdout and control, and their buckets do not overlap: a unit is in
    at most one of them. All other experiments have different salts: a salt used twice gives the same users the same
    arms again.
    """
    problems = []
    for first, second in combinations(files, 2):
        both = f"{first.name} and {second.name}"
        if first.name == second.name:
            problems.append(f"two experiments are named {first.name}: choose another name")
        elif first.exclusive_group is None or first.exclusive_group != second.exclusive_group:
            if first.salt == second.salt:
                problems.append(f"{both} use the salt {first.salt!r}: each needs its own, or both one exclusive_group")
        else:
            problems += _group_conflicts(first, second, both)
    return problems


def reuses(ended: ExperimentFile, new: ExperimentFile) -> list[str]:
    """Reasons why ``new`` may not follow an experiment that has ended: its users would be split as they were then.

    In one exclusive group the salt is shared, and buckets are used once.
    """
    if ended.salt != new.salt:
        return []
    both = f"{ended.name}, which has ended, and {new.name}"
    if ended.exclusive_group is None or ended.exclusive_group != new.exclusive_group:
        return [f"{both} use the salt {new.salt!r}: a new experiment needs a new salt"]
    return _overlap(ended, new, both)


def check_together(files: Sequence[ExperimentFile]) -> None:
    """Refuse conflicting experiments.

    Raises:
        ExperimentError: see :func:`conflicts`.
    """
    if problems := conflicts(files):
        raise ExperimentError("; ".join(problems))


def _group_conflicts(first: ExperimentFile, second: ExperimentFile, both: str) -> list[str]:
    group, problems = first.exclusive_group, []
    if first.salt != second.salt:
        problems.append(f"{both} are of the group {group!r} and need one salt, not {first.salt!r} and {second.salt!r}")
    if first.unit != second.unit:
        problems.append(f"{both} are of the group {group!r} and need one unit, not {first.unit!r} and {second.unit!r}")
    if first.holdout != second.holdout:
        problems.append(
            f"{both} are of the group {group!r} and need one holdout, not {first.holdout} and {second.holdout}"
        )
    if (first.control.bundle, first.control.mode) != (second.control.bundle, second.control.mode):
        problems.append(f"{both} are of the group {group!r} and need one control bundle and mode")
    return problems + _overlap(first, second, both)


def _overlap(first: ExperimentFile, second: ExperimentFile, both: str) -> list[str]:
    low, high = max(first.buckets[0], second.buckets[0]), min(first.buckets[1], second.buckets[1])
    if low >= high:
        return []
    return [
        f"{both} are of the group {first.exclusive_group!r} and overlap in the buckets {low} to {high}: give each its own range, "
        "or start a group with a new salt when its buckets are used up"
    ]


def _first_difference(path: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The path of the innermost difference between two values, and the two values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            if old.get(key) != new.get(key):
                return _first_difference(f"{path}.{key}", old.get(key), new.get(key))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return _first_difference(f"{path}.{index}", a, b)
    return path, old, new
