"""Outcomes as a log for training: lists, their weights and sequences as they were served, also those of side tables."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest

from thinktwice.data.ingest import ingest
from thinktwice.data.outcome_log import KEPT, schema_of_outcomes, write_outcome_log
from thinktwice.records.served import AT, ITEM, LABEL, USER
from thinktwice.schema import load_schema, parse_schema
from thinktwice.validate.split import split_log

SCHEMA = """\
name: lists
time: {column: ts, format: s}
label: {column: y}
entities: {user: {key: user}, item: {key: item}}
fields:
- {name: tags, column: labels, entity: item, kind: list, length: 4, weights: {name: tag_weights, column: label scores}}
- {name: likes, column: liked, entity: user, kind: list, separator: ";", weights: {name: like_weights, column: like scores}}
- {name: moods, kind: list}
sequences:
- {name: history, of: item, column: past, order: newest_last, length: 3}
"""
TABLES = "tables: {items: {path: items.csv}, users: {path: users.csv, key: id}}\n"


@pytest.mark.parametrize("tables", ["", TABLES])
def test_what_was_served_is_what_the_next_model_trains_on(tables: str, tmp_path: Path) -> None:
    schema = parse_schema(SCHEMA + tables, where="test")
    rows = 6
    begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
    served = pl.DataFrame(
        {
            **{name: ["x"] * rows for name in KEPT},
            AT: [begin + timedelta(minutes=n) for n in range(rows)],
            LABEL: [n % 2 for n in range(rows)],
            USER: [f"u{n}" for n in range(rows)],
            ITEM: [f"i{n}" for n in range(rows)],
            "tags": [[f"t{k}" for k in range(n % 4)] for n in range(rows)],
            "tag_weights": [[0.5 + k for k in range(n % 4)] for n in range(rows)],
            "likes": [["a", "b"]] * rows,
            "like_weights": [[1.0, 0.25], None] * (rows // 2),
            "moods": [["glad"]] * rows,
            "history": [[f"i{k}" for k in range(n % 3)] for n in range(rows)],  # newest first, as in every request
        }
    )
    served.write_parquet(tmp_path / "outcomes.parquet")
    assert (
        write_outcome_log(tmp_path / "outcomes.parquet", schema, tmp_path / "log.parquet", include_running=True).rows
        == rows
    )
    (tmp_path / "schema.yaml").write_text(schema_of_outcomes(schema).to_yaml())
    ingest("parquet", tmp_path / "log.parquet", tmp_path / "schema.yaml", tmp_path / "raw")
    result = split_log(tmp_path / "raw", tmp_path / "clean", tmp_path / "bad", run_id="r")
    assert (result.rows_clean, result.rows_quarantined) == (rows, 0)
    clean = pl.read_parquet(tmp_path / "clean" / "clean.parquet").sort("item")
    assert load_schema(tmp_path / "clean" / "schema.yaml").model_fields_in_order() == schema.model_fields_in_order()
    for name in ("tags", "tag_weights", "likes", "like_weights", "moods", "history"):
        assert [v or [] for v in clean[name].to_list()] == [v or [] for v in served[name].to_list()], name
