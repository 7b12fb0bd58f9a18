"""Access logs of a gateway that goes on writing and rotating them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thinktwice.errors import ExperimentError
from thinktwice.experiment.bootstrap import ACCESS_LOG
from thinktwice.files import full_disk_named

TRIES = 10  # a log is rotated at most every few seconds
NAMES = "access*.log"


@contextmanager
def frozen_access_logs(folder: Path, copy: Path) -> Iterator[list[Path]]:
    """The access logs of a gateway, each line once, though the gateway may write and rotate them.

    Rotated logs are read where they are. The current one is copied, from a file that is opened before the folder is listed
    and is still the current one afterwards, so that no rotation came between.

    Args:
        copy: file for the copy, removed afterwards.

    Raises:
        ExperimentError: the folder has no access log.
    """
    try:
        with full_disk_named(copy):
            rotated = _copied(folder, copy)
        if not rotated and not copy.exists():
            raise ExperimentError(f"{folder} contains no access log: run the gateway with this folder, or correct it")
        yield [*rotated, *([copy] if copy.exists() else [])]
    finally:
        copy.unlink(missing_ok=True)


def _copied(folder: Path, copy: Path) -> list[Path]:
    """Copy the current log, if there is one; returns the rotated ones."""
    for _ in range(TRIES):
        try:
            current = (folder / ACCESS_LOG).open("rb")
        except FileNotFoundError:
            return _rotated(folder)
        with current:
            rotated = _rotated(folder)
            with suppress(FileNotFoundError):
                if os.path.samestat(
                    os.fstat(current.fileno()), (folder / ACCESS_LOG).stat()
                ):  # so the list is complete
                    with copy.open("wb") as target:
                        shutil.copyfileobj(current, target, 1 << 20)
                    return rotated
    raise ExperimentError(f"the access log in {folder} is rotated again and again: set a larger log_bytes")


def _rotated(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(NAMES) if path.name != ACCESS_LOG and path.is_file())
