"""Scoring of raw rows with a bundle: its encoder and its engine, as in a server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.evidence import Evidence, History
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import SchemaError
from thinktwice.evaluate.measure import ScoreColumn
from thinktwice.release.bundle import Bundle
from thinktwice.testtime.engine import raw_rows
from thinktwice.threads import reproducible


def misfit(bundle: Bundle, rows: pl.DataFrame) -> str:
    """Why the bundle cannot score ``rows``, naming the columns; empty if it can."""
    missing = [f.name for f in bundle.encoder.row_fields if f.name not in rows.columns]
    if missing:
        return f"the rows lack its columns {', '.join(missing)}"
    for f in bundle.encoder.row_fields:
        dtype = rows.schema[f.name]
        if not _readable(f.kind, dtype):
            return f"it reads column {f.name} as {f.kind} and the rows contain {dtype}"
    return ""


def _readable(kind: str, dtype: pl.DataType) -> bool:
    """Whether a field of ``kind`` can read such a column. For example, numbers are all unknown to a vocabulary of strings, and
    the model would be compared with that field blank."""
    if kind in ("sequence", "vector", "weights"):
        if not isinstance(dtype, (pl.List, pl.Array)):
            return False
        number = dtype.inner.is_numeric()
        return not number if kind == "sequence" else number
    if isinstance(dtype, (pl.List, pl.Array)):
        return False
    return dtype.is_numeric() == (kind == "numeric")


def evidence_of_test(bundle: Bundle, data: TrainingSet) -> Evidence | None:
    """Evidence of the test rows of ``data`` in the encoding of ``bundle``; None for a model that reads no evidence, or counters
    that the training set does not have: it is then judged by its base scores."""
    evidence = data.part_with_evidence("test").evidence if bundle.reads_counters else None
    definition, item = definition_of(bundle.schema), bundle.schema.key_of("item")
    if evidence is None or data.counter_scale is None or definition is None:
        return None
    if data.counter_scale.definition != definition.hash:
        return None
    column = data.encoder.column_of(item)
    if evidence.history is None or item is None or column is None:
        return evidence
    read, values = evidence.history, range(data.encoder.num_values[column])
    positions = [
        0 if (v := data.encoder.value_of(item, i)) is None else bundle.encoder.index_of(item, v) for i in values
    ]

    def history() -> History | None:
        encoded = read()
        return None if encoded is None else replace(encoded, items=np.asarray(positions, np.int32)[encoded.items])

    return Evidence(evidence.counters, history)


@reproducible()
def score_bundle(
    bundle: Bundle, rows: pl.DataFrame, *, key: str, label: str, evidence: Evidence | None = None
) -> tuple[ScoreColumn, EncodedRows]:
    """Scores of ``rows``, with their ``evidence``, as a column of an evaluation, and the rows as the bundle encoded them.

    Raises:
        SchemaError: the rows do not fit the bundle.
    """
    reason = misfit(bundle, rows)
    if reason:
        raise SchemaError(
            f"bundle {bundle.manifest.model_version} cannot score these rows: {reason}; use rows of its schema"
        )
    encoded = replace(bundle.encoder.encode_table(rows.to_arrow()), evidence=evidence)
    scored = bundle.engine.finish(raw_rows(bundle.engine, encoded))
    return ScoreColumn(
        key, label, scored.logit, scored.probability, 1 + scored.path_rows / max(len(encoded), 1)
    ), encoded
