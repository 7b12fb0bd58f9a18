"""Counters and latest outcomes of rows that are not part of a log, as of their instants."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from thinktwice.data.encoder import Encoder
from thinktwice.data.evidence import Evidence, History
from thinktwice.data.instant.definition import Definition
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.data.instant.recent import recent_outcomes
from thinktwice.schema import EVENT_TIME, LABEL
from thinktwice.schema.values import spelled

_OUTCOME, _POSITION = "is an outcome", "position among the rows"


def columns_of(definition: Definition) -> tuple[str, ...]:
    """The columns of ids and values that counters are computed from."""
    keys = [key for key in (definition.user, definition.item) if key is not None]
    fields = [crossed.field for crossed in (*definition.topics, *definition.attributes)]
    return tuple(dict.fromkeys([*keys, *fields]))


def evidence_as_of(
    log: pl.DataFrame,
    rows: Mapping[str, pl.Series],
    times: pl.Series,
    definition: Definition,
    encoder: Encoder,
    scratch: Path | None = None,
) -> Evidence:
    """The evidence of rows [R]: of each, the outcomes of the log that were known strictly before its instant.

    The log is counted once, whatever the number of rows.

    Args:
        log: clean rows in any order, with ``event_time``, ``label`` and :func:`columns_of`.
        rows: the columns of the rows [R], by name.
        times: instants [R] of the rows, UTC microseconds.
        encoder: of the model that reads the evidence.
        scratch: folder in which the counters are kept, in a file; None: in memory.
    """
    names = columns_of(definition)

    def words(values: pl.Series) -> pl.Series:
        return spelled(values.to_arrow()).cast(pl.String)

    outcomes = pl.DataFrame(
        {
            EVENT_TIME: log[EVENT_TIME].dt.epoch("us"),
            LABEL: log[LABEL].cast(pl.Int8),
            **{name: words(log[name]) for name in names},
            _OUTCOME: np.ones(log.height, bool),
            _POSITION: np.full(log.height, -1),
        }
    )
    asked = pl.DataFrame(
        {
            EVENT_TIME: times,
            LABEL: np.zeros(len(times), np.int8),
            **{name: words(rows[name]) for name in names},
            _OUTCOME: np.zeros(len(times), bool),
            _POSITION: np.arange(len(times)),
        }
    )
    both = pl.concat([outcomes, asked]).sort(EVENT_TIME, maintain_order=True)
    both = both.with_columns(pl.col(EVENT_TIME).cast(pl.Datetime("us", "UTC")))
    in_order = log_rows(lambda name: both[name], definition)
    in_order = replace(in_order, outcomes=both[_OUTCOME].to_numpy())
    position = both[_POSITION].to_numpy()
    counters = _empty((len(times), len(definition.names)), scratch)
    start = 0
    with tempfile.TemporaryDirectory(prefix="thinktwice-counters-") as folder:
        for block in log_counters(in_order, definition, Path(folder)):
            part = position[start : start + len(block)]
            counters[part[part >= 0]] = block[part >= 0]
            start += len(block)
    if definition.user is None or definition.item is None:
        return Evidence(counters)
    recent = recent_outcomes(in_order, definition)
    index = np.array([encoder.index_of(definition.item, word) for word in in_order.item_ids] + [0], np.int32)
    first, last = np.zeros(len(times), np.int32), np.zeros(len(times), np.int32)
    is_row = position >= 0
    first[position[is_row]], last[position[is_row]] = recent.start[is_row], recent.end[is_row]
    history = History(index[in_order.items[recent.outcomes]], in_order.clicked[recent.outcomes], first, last)
    return Evidence(counters, lambda: history)


def _empty(shape: tuple[int, int], scratch: Path | None) -> npt.NDArray[np.float32]:
    """An array to be filled, in a file of the folder ``scratch`` if one is given."""
    if scratch is None or 0 in shape:  # an empty file cannot be mapped
        return np.empty(shape, np.float32)
    return np.lib.format.open_memmap(scratch / "counters.npy", mode="w+", dtype=np.float32, shape=shape)
