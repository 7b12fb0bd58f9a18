"""A model that a run does not train, marked in its folder, so that the graph is the same with and without it."""

from __future__ import annotations

from pathlib import Path

from thinktwice.files import atomic_dir, write_json

ABSENT_FILE = "absent.json"


def write_absent(folder: Path | str, why: str) -> None:
    """Write a model folder without a model."""
    with atomic_dir(folder) as temporary:
        write_json(temporary / ABSENT_FILE, {"absent": why})


def is_absent(folder: Path | str) -> bool:
    """Whether :func:`write_absent` wrote the folder."""
    return (Path(folder) / ABSENT_FILE).is_file()
