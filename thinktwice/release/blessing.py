"""``blessing.json``: whether a bundle may replace the champion, and why. The bless step writes it, deployment reads it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from thinktwice.errors import PipelineError
from thinktwice.release.bundle import bundle_hash
from thinktwice.versioned import MeasuredInterval, Record, ResultFile, read_result

BLESSING_FILE = "blessing.json"

Metrics = dict[str, float | None]  # by name; None if a metric is not defined on these rows


class ComparedChampion(Record):
    """The champion on the rows of the comparison."""

    bundle_hash: str
    model_version: str
    metrics: Metrics


class Blessing(ResultFile):
    """The verdict on one bundle; ``reasons`` are sentences.

    ``champion_hash`` is the only bundle that the deployment may replace, since this model was compared with no other; None if
    there was no champion. ``champion``, ``compared_rows`` and ``changes`` (candidate minus champion, by metric) are set if both
    could be compared.
    """

    FORMAT: ClassVar[int] = 2

    blessed: bool
    reasons: tuple[str, ...]
    bundle_hash: str
    champion_hash: str | None
    model_version: str
    rows: int
    candidate: Metrics
    compared_rows: int | None = None
    champion: ComparedChampion | None = None
    changes: dict[str, MeasuredInterval] | None = None


def read_blessing(path: Path | str) -> Blessing:
    """Read a blessing from its file, or from the folder that contains it.

    Raises:
        PipelineError: it is missing, damaged, or of another format.
    """
    path = Path(path)
    return read_result(
        path / BLESSING_FILE if path.is_dir() else path, Blessing, PipelineError, "run the bless step again"
    )


def require_blessing(path: Path | str, bundle_dir: Path | str) -> Blessing:
    """Read the blessing and check that it is positive and for this bundle.

    Raises:
        PipelineError: there is none, it is negative, or it is for another bundle.
    """
    value = read_blessing(path)
    if not value.blessed:
        why = "; ".join(value.reasons) or "no reason given"
        raise PipelineError(
            f"the model is not blessed ({why}): it is not deployed, the champion stays; read the report for what to improve, or train on more rows"
        )
    if (actual := bundle_hash(bundle_dir)) != value.bundle_hash:
        raise PipelineError(
            f"the blessing is for bundle {value.bundle_hash[:12]} and this is bundle {actual[:12]}: bless this bundle"
        )
    return value
