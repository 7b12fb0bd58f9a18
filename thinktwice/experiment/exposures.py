"""The collection of exposures: the join of all logs up to a watermark, as one folder that is replaced as a whole.

Every run joins all logs again, so a run that was killed is repaired by the next, and rows that were written late find their
place. Memory is bounded: what does not fit goes to disk beside the folder.
"""

from __future__ import annotations

import fcntl
import glob
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import BucketLayout, layout_of
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.join import JoinCounts, Logs, join_exposures
from thinktwice.files import atomic_dir
from thinktwice.frozen import Frozen
from thinktwice.parquet import read_schema
from thinktwice.records.served import USER_IDS, UserIds

COLLECTED = "exposures.json"


class Collected(Frozen):
    """What ``exposures.json`` says about the files beside it.

    Attributes:
        watermark: requests up to it were joined; later ones are counted as open.
        user_ids: how the prediction logs hide user ids; the strictest of all parts.
    """

    format: Literal[1] = 1
    watermark: AwareDatetime
    user_ids: UserIds
    counts: JoinCounts


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """The only run that writes the folder ``out``, after removing what a killed one has left beside it.

    Raises:
        ExperimentError: another run writes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ExperimentError(f"another run writes {out}: wait for it, or choose another folder") from None
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield


def widest_layout(experiments: Sequence[ExperimentFile]) -> BucketLayout:
    """The layout of experiments that share a salt, each at the highest coverage of its ramp: enrolled at any step is enrolled
    there."""
    widest = []
    for file in experiments:
        coverage = max((file.coverage, *(step.coverage for step in file.ramp)))
        widest.append(file.model_copy(update={"coverage": coverage}))
    return layout_of(widest)


def collect_exposures(
    experiments: Sequence[ExperimentFile],
    access: Sequence[Path],
    predictions: Sequence[Path],
    out: Path,
    watermark: datetime,
    memory: str = "2GB",
) -> Collected:
    """Join the logs into ``out``, which is replaced as a whole: ``exposures.parquet``, ``requests.parquet``, ``exposures.json``.

    Args:
        experiments: of one salt.
        access: access logs of the gateway.
        out: written by one run at a time (:func:`sole_writer`).
        predictions: parts of the prediction logs of all arms.
        watermark: time up to which the logs are complete.

    Raises:
        ExperimentError: a log is missing, damaged, or has no columns of experiments; or experiments conflict.
        ResourceError: memory and disk are too small.
    """
    with atomic_dir(out) as folder:
        counts = join_exposures(Logs(access, predictions), widest_layout(experiments), folder, memory, watermark)
        collected = Collected(watermark=watermark, user_ids=_user_ids(predictions), counts=counts)
        (folder / COLLECTED).write_text(collected.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return collected


def read_collected(folder: Path) -> Collected:
    """What a collection says about itself.

    Raises:
        ExperimentError: the folder holds no collection.
    """
    try:
        return Collected.model_validate_json((folder / COLLECTED).read_bytes())
    except FileNotFoundError:
        raise ExperimentError(f"{folder} contains no exposures: collect them with `thinktwice exposures`") from None
    except (OSError, ValidationError):
        raise ExperimentError(f"{folder / COLLECTED} cannot be read: collect the exposures again") from None


def _user_ids(predictions: Sequence[Path]) -> UserIds:
    found = {(read_schema(part).metadata or {}).get(USER_IDS, b"raw").decode() for part in predictions}
    return "none" if "none" in found else "hashed" if "hashed" in found else "raw"
