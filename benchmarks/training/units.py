"""Units of work: each is done once and kept on disk, under the hash of the code and settings that made it.

A result is written aside and then renamed, so a study that is killed continues with the unit that was cut short.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.evidence.kept import ROOT, Kept
from thinktwice.files import sha256_text

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Unit:
    """``compute`` makes the arrays of a unit; ``key`` is the hash of the code it depends on."""

    name: str
    key: str
    compute: Callable[[], Arrays]


class Units:
    """The units of a study in a folder."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "units"

    def found(self, unit: Unit) -> Arrays | None:
        """The result of a unit; None if it was not done."""
        return Kept(self.folder, unit.key).found(unit.name)

    def do(self, unit: Unit) -> Arrays:
        """The result of a unit, computed and kept if it is not there."""
        if (found := self.found(unit)) is not None:
            return found
        start = time.monotonic()
        made = Kept(self.folder, unit.key).arrays(unit.name, unit.compute)
        print(f"{unit.name}: {time.monotonic() - start:.0f} s", flush=True)
        return made


def code_of(*paths: str) -> str:
    """Hash of what source files do, relative to the repository: comments, docstrings and the layout of the code do not count."""
    files: list[Path] = []
    for name in paths:
        path = ROOT / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sha256_text(*(part for file in files for part in (str(file.relative_to(ROOT)), _statements(file))))[:16]


def _statements(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(statement: object) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def names(units: Iterable[Unit]) -> list[str]:
    return [unit.name for unit in units]
