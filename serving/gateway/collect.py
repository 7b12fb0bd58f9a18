"""The logs that a collection of exposures reads, taken while gateway and predictors go on writing them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from thinktwice.errors import DataError
from thinktwice.experiment.access_logs import frozen_access_logs
from thinktwice.experiment.exposures import Collected, collect_exposures, sole_writer
from thinktwice.experiment.file import ExperimentFile
from thinktwice.records.served import PART


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
