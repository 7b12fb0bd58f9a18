"""Evidence of rows outside a log equals that of the rows inside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.data.instant.logs import assert_same_bits
from tests.feedback.stores import clean_table, full_schema, random_log
from thinktwice.data.encoder import Encoder
from thinktwice.data.instant.as_of import columns_of, evidence_as_of
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.instant.log_counters import log_counters, log_rows
from thinktwice.data.instant.recent import recent_outcomes


@pytest.mark.parametrize("seed", range(4))
def test_rows_see_what_the_same_rows_of_the_log_see(seed: int, tmp_path: Path) -> None:
    schema = full_schema(click=5 * seed)
    definition = definition_of(schema)
    assert definition is not None
    log = clean_table(random_log(120, seed)).sort("event_time", maintain_order=True)
    in_order = log_rows(lambda name: log[name], definition)
    expected = np.concatenate(list(log_counters(in_order, definition, tmp_path)))
    sequences = [pl.Series(s.name, [[]] * log.height, dtype=pl.List(pl.String)) for s in schema.sequences]
    numbers = [n for e in ("user", "item") for n in schema.statistic_names(e)]  # type: ignore[arg-type]
    whole = log.with_columns(*sequences, *(pl.lit(0.0).alias(n) for n in numbers))
    encoder = Encoder.fit(whole.to_arrow(), schema)
    turned = log.sample(fraction=1.0, shuffle=True, seed=seed).with_row_index("row")
    order = (
        log.with_row_index("row").join(turned.select("row_id"), on="row_id", maintain_order="right")["row"].to_numpy()
    )
    rows = {name: turned[name] for name in columns_of(definition)}
    times = turned["event_time"].dt.epoch("us")
    evidence = evidence_as_of(log, rows, times, definition, encoder)
    assert_same_bits(evidence.counters, expected[order], definition.names)
    recent = recent_outcomes(in_order, definition)
    assert evidence.history is not None
    history = evidence.history()
    assert history is not None
    items = log["item_id"].to_list()
    for row, (start, end) in enumerate(zip(recent.start[order], recent.end[order], strict=True)):
        seen = recent.outcomes[start:end]
        found = slice(int(history.start[row]), int(history.end[row]))
        assert history.items[found].tolist() == [encoder.index_of("item_id", items[r]) for r in seen]
        assert history.clicked[found].tolist() == in_order.clicked[seen].tolist()
