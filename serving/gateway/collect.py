"""The logs that a collection of exposures reads, taken while gateway and predictors go on writing them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from thinktwice.errors import DataError, ExperimentError
from thinktwice.experiment.bootstrap import ACCESS_LOG
from thinktwice.experiment.exposures import Collected, collect_exposures, sole_writer
from thinktwice.experiment.file import ExperimentFile
from thinktwice.files import full_disk_named
from thinktwice.records.served import PART

TRIES = 10  # a log is rotated at most every few seconds


def collect(
    experiments: Sequence[ExperimentFile],
    gateway: Path,
    served: Sequence[Path],
    out: Path,
    watermark: datetime,
    memory: str = "2GB",
) -> Collected:
    """Join the access logs in a gateway's folder with prediction logs (folders), and write the exposures.

    Raises:
        ExperimentError, DataError: there are no such logs, or one is damaged.
        ResourceError: memory and disk are too small.
    """
    parts = [part for folder in served for part in prediction_parts(folder)]
    with sole_writer(out), frozen_access_logs(gateway, out.parent / f".{out.name}.access.part") as access:
        return collect_exposures(experiments, access, parts, out, watermark, memory)


def prediction_parts(folder: Path) -> list[Path]:
    """The complete parts of one prediction log.

    Raises:
        DataError: the folder does not exist. An empty one is no error: the first part may not be written yet.
    """
    if not folder.is_dir():
        raise DataError(
            f"there is no prediction log {folder}: set prediction_log.folder of the predictor, or correct it"
        )
    return sorted(folder.glob(PART))


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
            return sorted(folder.glob("access-*.log"))
        with current:
            rotated = sorted(folder.glob("access-*.log"))
            with suppress(FileNotFoundError):
                if os.path.samestat(
                    os.fstat(current.fileno()), (folder / ACCESS_LOG).stat()
                ):  # so the list is complete
                    with copy.open("wb") as target:
                        shutil.copyfileobj(current, target, 1 << 20)
                    return rotated
    raise ExperimentError(f"the access log in {folder} is rotated again and again: set a larger log_bytes")
