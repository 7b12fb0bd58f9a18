"""Outcomes: exposures with the clicks of the feedback log, as one folder that is replaced as a whole."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from serving.feedback.clicks import write_clicks
from thinktwice.data.outcome_log import LOG, LogCounts, schema_of_outcomes, write_outcome_log
from thinktwice.errors import DataError
from thinktwice.experiment.exposures import Collected, read_collected, sole_writer
from thinktwice.experiment.join import EXPOSURES
from thinktwice.experiment.outcomes import OUTCOMES, OutcomeCounts, Window, join_outcomes
from thinktwice.files import atomic_dir
from thinktwice.frozen import Frozen
from thinktwice.schema import SCHEMA_FILE, LogSchema

JOINED = "outcomes.json"


class Joined(Frozen):
    """What ``outcomes.json`` says about the files beside it.

    Attributes:
        watermark: time up to which the feedback log is complete.
        log: rows of the log for training; null if none was written.
    """

    format: Literal[1] = 1
    watermark: AwareDatetime
    window: Window
    counts: OutcomeCounts
    log: LogCounts | None
    exposures: Collected


def join(
    events: Path,
    exposures: Path,
    out: Path,
    window: Window,
    *,
    schema: LogSchema | None = None,
    ended: Collection[str] = (),
    include_running: bool = False,
    memory: str = "2GB",
) -> Joined:
    """Join the clicks of a feedback log with collected exposures into ``out``: ``outcomes.parquet``, ``outcomes.json``, and
    with a schema ``log.parquet`` and ``schema.yaml``.

    Args:
        ended, include_running: see :func:`thinktwice.data.outcome_log.write_outcome_log`.

    Raises:
        DataError: the feedback log is missing or damaged, or no log for training can be made of these exposures.
        ExperimentError: the exposures are missing or damaged.
        ResourceError: memory and disk are too small.
    """
    with sole_writer(exposures):  # a collection would replace the rows while they are read
        return _join(events, exposures, out, window, schema, ended, include_running, memory)


def _join(
    events: Path,
    exposures: Path,
    out: Path,
    window: Window,
    schema: LogSchema | None,
    ended: Collection[str],
    include_running: bool,
    memory: str,
) -> Joined:
    collected = read_collected(exposures)
    if schema is not None and schema.entities.user is not None and collected.user_ids != "raw":
        raise DataError(
            f"the prediction log hides user ids (user_ids: {collected.user_ids}), so no model can be trained from it: "
            "log raw ids, or join without a schema"
        )
    with sole_writer(out), atomic_dir(out) as folder:
        clicks, watermark = write_clicks(events, out.with_name(f".{out.name}.clicks"))
        if watermark is None:
            raise DataError(f"the event log {events} is empty: start `thinktwice feedback run` and send it the clicks")
        counts = join_outcomes([exposures / EXPOSURES], clicks, folder, watermark, window, memory, collected.watermark)
        log = None
        if schema is not None:
            (folder / SCHEMA_FILE).write_text(schema_of_outcomes(schema).to_yaml(), encoding="utf-8")
            log = write_outcome_log(
                folder / OUTCOMES, schema, folder / LOG, ended=ended, include_running=include_running, memory=memory
            )
        joined = Joined(watermark=watermark, window=window, counts=counts, log=log, exposures=collected)
        (folder / JOINED).write_text(joined.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return joined
