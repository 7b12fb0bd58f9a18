"""Results of units of work, kept on disk under the hash of the code and settings that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from thinktwice.files import atomic_file, sha256_text

ROOT = Path(__file__).parents[2]


class Kept:
    """The kept results in a folder. ``key`` describes code and settings; another key never reads what this one wrote."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, unit: str) -> Path:
        """Where a unit's result is kept."""
        return self.folder / f"{unit.replace(' ', '-')}-{sha256_text(self.key, unit)[:12]}"

    def found(self, unit: str) -> dict[str, np.ndarray] | None:
        """The arrays of a unit, None if it was not done."""
        path = self._file(unit)
        return load_file(str(path)) if path.is_file() else None

    def arrays(self, unit: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of a unit, computed if they are not there."""
        path = self._file(unit)
        if not path.is_file():
            made = {name: np.ascontiguousarray(value) for name, value in compute().items()}
            with atomic_file(path) as temporary:
                save_file(made, str(temporary))
        return load_file(str(path))

    def _file(self, unit: str) -> Path:
        path = self.path(unit)
        return path.with_name(f"{path.name}.safetensors")  # not with_suffix: a unit may have a dot in its name


def code_hash(*paths: str) -> str:
    """Hash of source files, or of all of a folder, relative to the repository."""
    files: list[Path] = []
    for name in paths:
        path = ROOT / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sha256_text(*(part for file in files for part in (str(file.relative_to(ROOT)), file.read_text())))[:16]
