"""Counters of instant statistics as they were served, against those that a training set has for the same impressions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.data.feature_tables import CLEAN_FILE
from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.parquet import scan_frame
from thinktwice.records.served import AT, ITEM, USER
from thinktwice.schema import EVENT_TIME, ROW_ID
from thinktwice.schema.values import spelled

_PLACE = "place in the log"


def training_counters(
    served: pl.DataFrame, names: list[str], clean_dir: Path, definition: Definition
) -> tuple[np.ndarray, pl.DataFrame]:
    """The counters that training has for served rows.

    A served row is the impression of the clean log with its user, its item and its instant; others have nothing to compare with.

    Args:
        served: rows of a prediction log.
        names: counters to return.

    Returns:
        Numbers [m] of the served rows that are impressions of the clean log, and their counters [m, names], NaN for unknown.
    """
    keys = {USER: definition.user, ITEM: definition.item}
    present = [key for key in keys.values() if key is not None]
    fields = [c.field for c in (*definition.topics, *definition.attributes)]
    columns = list(dict.fromkeys([EVENT_TIME, ROW_ID, "label", *present, *fields]))
    log = scan_frame(clean_dir / CLEAN_FILE).select(columns).sort(EVENT_TIME, ROW_ID).collect()
    join = [AT, *(name for name, key in keys.items() if key is not None)]
    places = pl.DataFrame(
        {
            AT: log[EVENT_TIME].dt.epoch("us"),
            **{name: spelled(log[key].to_arrow()) for name, key in keys.items() if key is not None},
            _PLACE: np.arange(log.height),
        }
    ).unique(join, keep="first", maintain_order=True)
    asked = served.select(pl.col(AT).dt.epoch("us"), *join[1:])
    found = asked.join(places, on=join, how="left", nulls_equal=True, maintain_order="left")[_PLACE]
    matched = np.flatnonzero(found.is_not_null().to_numpy())
    wanted = found.drop_nulls().to_numpy()
    out = np.full((len(wanted), len(names)), np.nan, np.float32)
    columns_of = [definition.names.index(name) for name in names]
    start = 0
    with tempfile.TemporaryDirectory(prefix="thinktwice-skew-") as scratch:
        for block in log_counters(log_rows(lambda name: log[name], definition), definition, Path(scratch)):
            inside = (wanted >= start) & (wanted < start + len(block))
            out[inside] = block[wanted[inside] - start][:, columns_of]
            start += len(block)
    return matched, pl.DataFrame({name: out[:, n] for n, name in enumerate(names)})
