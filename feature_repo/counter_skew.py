"""Skew of instant statistics: served counters against those in a training set for the same impressions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.records.served import AT, INSTANT, ITEM, USER
from thinktwice.schema import EVENT_TIME, ROW_ID, SCHEMA_FILE, load_schema
from thinktwice.schema.values import spelled
from thinktwice.validate.side_tables import read_clean

_POSITION = "position in the log"


def training_counters(
    served: pl.DataFrame, names: list[str], clean_dir: Path, definition: Definition
) -> tuple[np.ndarray, pl.DataFrame]:
    """The training counters of served rows.

    A served row is matched to the impression of the clean log with its user, item and instant; other rows are not compared.

    Args:
        served: rows of a prediction log.
        names: counters to return.

    Returns:
        Indices [m] of the served rows that are impressions of the clean log, and their counters [m, names], NaN for unknown.
    """
    keys = {USER: definition.user, ITEM: definition.item}
    present = [key for key in keys.values() if key is not None]
    fields = [c.field for c in (*definition.topics, *definition.attributes)]
    columns = list(dict.fromkeys([EVENT_TIME, ROW_ID, "label", *present, *fields]))
    log = read_clean(clean_dir, load_schema(clean_dir / SCHEMA_FILE), columns).sort(EVENT_TIME, ROW_ID)
    join_columns = [AT, *(name for name, key in keys.items() if key is not None)]
    log_index = pl.DataFrame(
        {
            AT: log[EVENT_TIME].dt.epoch("us"),
            **{name: spelled(log[key].to_arrow()) for name, key in keys.items() if key is not None},
            _POSITION: np.arange(log.height),
        }
    ).unique(join_columns, keep="first", maintain_order=True)
    # Logs of earlier versions have no instant of the request.
    instant = pl.coalesce(INSTANT, AT) if INSTANT in served.columns else pl.col(AT)
    served_keys = served.select(instant.dt.epoch("us").alias(AT), *join_columns[1:])
    positions = served_keys.join(log_index, on=join_columns, how="left", nulls_equal=True, maintain_order="left")[
        _POSITION
    ]
    matched = np.flatnonzero(positions.is_not_null().to_numpy())
    matched_positions = positions.drop_nulls().to_numpy()
    out = np.full((len(matched_positions), len(names)), np.nan, np.float32)
    columns_of = [definition.names.index(name) for name in names]
    start = 0
    with tempfile.TemporaryDirectory(prefix="thinktwice-skew-") as scratch:
        for block in log_counters(log_rows(lambda name: log[name], definition), definition, Path(scratch)):
            in_block = (matched_positions >= start) & (matched_positions < start + len(block))
            out[in_block] = block[matched_positions[in_block] - start][:, columns_of]
            start += len(block)
    return matched, pl.DataFrame({name: out[:, n] for n, name in enumerate(names)})
