"""Scores for tables of rows with features, bit-identical to those of a server for the same values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.evidence import Evidence
from thinktwice.data.scoring_rows import Rows, as_table, read_counters, read_fields
from thinktwice.errors import DataError, SchemaError
from thinktwice.release.bundle import Bundle
from thinktwice.schema.values import can_spell, spelled
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.scores import Scored

BLOCK_ROWS = 4096  # rows per batch when rows are scored independently
MAX_REQUEST_ROWS = 1000  # limit of a server per request
COLUMNS = ("probability", "uncertainty", "num_paths")


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of R rows, in the order of the rows.

    Attributes:
        probability: [R] float64, calibrated click probability.
        uncertainty: [R] float64 in 0..1, mean of the entropy of the probability (bits) and the share of the row's values
            without support in training.
        num_paths: [R] int64, forward passes; more than 1 for escalated rows.
        model_version, bundle_hash: the model that computed the scores.
    """

    probability: np.ndarray
    uncertainty: np.ndarray
    num_paths: np.ndarray
    model_version: str
    bundle_hash: str

    def __len__(self) -> int:
        return len(self.probability)

    def to_table(self) -> pa.Table:
        """The columns ``probability``, ``uncertainty`` and ``num_paths`` [R]."""
        return pa.table({name: getattr(self, name) for name in COLUMNS})


def score_table(bundle: Bundle, rows: Rows, *, request: str | None = None, evidence: Evidence | None = None) -> Scores:
    """Score rows that contain all features.

    Scores equal those of a server for the same values. There is no deadline and no cap on extra passes, so a score does not
    depend on the other rows. With ``request``, rows are scored per request under the model's cap, as on a server. Models that
    select escalated rows per request (triggers ``budget`` and ``decision``) require it.

    Args:
        bundle: from :func:`thinktwice.open_bundle`.
        rows: [R] a pyarrow, polars or pandas table (anything with the Arrow C stream interface), or a list of mappings from field
            names to values. Null is an unknown value. Other columns are ignored. Derived fields without a column are computed
            from ``event_time`` or ``timestamp``.
        request: column whose runs of equal values are requests, of at most 1,000 rows each.
        evidence: counters and outcomes of the R rows, for a model that reads counters. By default the counters are the columns
            named as in ``counter_names(bundle.schema)``, null where unknown, and no outcomes are known: rows keep the
            score before a second look that reads them.

    Raises:
        SchemaError: a field or a counter of the model has no column, or its column has an unsupported type.
        DataError: a value has the wrong type or is out of range; the message names column, row and value.
    """
    table = as_table(rows, bundle.schema, bundle.encoder)
    requests = None if request is None else request_starts(table, request)
    trigger = bundle.engine.trigger
    if requests is None and trigger is not None and trigger.of_requests:
        raise SchemaError(
            f"model {bundle.manifest.model_version} chooses escalated rows per request (trigger "
            f"{getattr(trigger, 'kind', type(trigger).__name__)!r}): name the column that identifies requests"
        )
    encoded = bundle.encoder.encode_table(read_fields(table, bundle.schema, bundle.encoder))
    if bundle.reads_counters and evidence is None:
        evidence = Evidence(read_counters(table, bundle.schema))
    if evidence is not None and len(evidence) != len(encoded):
        raise DataError(
            f"the evidence has {len(evidence)} rows and the table {len(encoded)}: give one row of evidence per row"
        )
    parts = list(_scored(bundle.engine, replace(encoded, evidence=evidence), requests))
    joined = [np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0) for name in COLUMNS]
    if len(invalid_rows := np.flatnonzero(~np.isfinite(joined[0]))):
        raise DataError(
            f"row {int(invalid_rows[0])} has no finite score: its numbers are too large for the model, give smaller ones"
        )
    return Scores(joined[0], joined[1], joined[2].astype(np.int64), bundle.manifest.model_version, bundle.hash)


def request_starts(table: pa.Table, column: str) -> np.ndarray:
    """First row of every run of equal values of ``column``, and the number of rows [requests + 1].

    Raises:
        SchemaError: there is no such column, or one whose values cannot be compared.
        DataError: a request has more rows than a server takes.
    """
    if column not in table.column_names:
        raise SchemaError(f"the rows have no column {column!r}, which identifies requests: correct the name")
    if not can_spell(table[column].type):
        raise SchemaError(f"column {column!r} has type {table[column].type}, which cannot identify requests: give ids")
    values = spelled(table[column])
    changed = (values.ne_missing(values.shift(1))).to_numpy() if len(values) else np.zeros(0, bool)
    starts = np.append(np.flatnonzero(np.r_[True, changed[1:]]) if len(values) else np.zeros(0, np.int64), len(values))
    if len(sizes := np.diff(starts)) and sizes.max() > MAX_REQUEST_ROWS:
        index = int(starts[int(sizes.argmax())])
        raise DataError(
            f"the request from row {index} on has {sizes.max():,} rows of one {column!r}, a server takes {MAX_REQUEST_ROWS:,}: "
            "split it, or score rows one by one without a request column"
        )
    return starts


def _scored(engine: Engine, rows: EncodedRows, starts: np.ndarray | None) -> Iterator[Scored]:
    if starts is None:
        engine = engine.uncapped()
        starts = np.append(np.arange(0, len(rows), BLOCK_ROWS), len(rows))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        part = slice(start, end)
        yield engine.score(rows.batch(part), evidence=None if rows.evidence is None else rows.evidence.take(part))
