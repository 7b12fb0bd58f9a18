"""Sums per unit of the days before an experiment: the covariates of its analysis, and the check that its arms were alike.

They are of all delivered rows with a unit, in an experiment or not. Once the windows of their clicks have ended they never change: they
are kept, and later looks do not read these days again. The name of what is kept has its checksum: if it is damaged, it is set aside and
these days are read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from thinktwice.experiment.exposures import sole_writer
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.gather import widest_layout
from thinktwice.experiment.join import EXPOSURES, Logs, join_exposures
from thinktwice.experiment.kept import checksums, damaged, set_aside
from thinktwice.experiment.outcomes import OUTCOMES, Window, join_outcomes
from thinktwice.experiment.unit_sums import write_past_sums
from thinktwice.files import sha256_text
from thinktwice.parquet import num_rows, read_schema
from thinktwice.records.exposure import UNIT

FORMAT = 2  # another one is computed again


def sums_before(
    file: ExperimentFile,
    logs: Logs,
    clicks: Sequence[Path],
    folder: Path,
    *,
    started: datetime,
    at: datetime,
    window: Window,
) -> list[Path]:
    """Tables with the sums of every unit over the declared days before the start; none without a declared pre-period.

    Args:
        logs: of these days at least.
        folder: where they are kept.
        at: time up to which all logs and clicks are complete.

    Raises:
        ExperimentError: a log is missing or damaged.
    """
    if file.pre_period is None:
        return []
    since = started - timedelta(days=file.pre_period.days)
    key = sha256_text(repr((FORMAT, since, started, window.model_dump_json())))[:16]
    for kept in sorted(folder.glob(f"before-{key}-*.parquet")):
        if not damaged(folder, {kept.name: kept.stem.rpartition("-")[2]}):
            return [kept]
        set_aside(folder, [kept.name], folder / "damaged")
        kept.unlink()
    # A part of a server without experiments has no units.
    parts = [part for part in logs.predictions if num_rows(part) and UNIT in read_schema(part).names]
    with (
        sole_writer(folder / "before"),
        TemporaryDirectory(prefix=".before.", suffix=".part", dir=folder) as scratch,
    ):
        out = Path(scratch)
        join_exposures(Logs(logs.access, parts), widest_layout(file, ()), out, watermark=started)
        join_outcomes([out / EXPOSURES], clicks, out, at, window)
        complete = started + timedelta(seconds=window.seconds + window.late_seconds) <= at
        target = folder / "before-open.parquet"
        write_past_sums([out / OUTCOMES], target, since, started)
        if complete:
            (digest,) = checksums(folder, [target]).values()
            target = target.rename(folder / f"before-{key}-{digest}.parquet")
    return [target]
