"""The evidence of a training set's rows: the user's earlier outcomes and nothing else, by the codes of the encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.selection import drifting
from thinktwice.data.evidence import Evidence, History
from thinktwice.errors import DataError

DELAY_US = 60_000_000


@pytest.mark.parametrize("kind", ["time", "random"])
def test_a_row_sees_the_outcomes_of_its_user_that_were_known_before_it(tmp_path: Path, kind: str) -> None:
    data = drifting.training_set(tmp_path / "set", drifting.log(1500, users=4, items=30), kind=kind)
    parts = {name: data.part_with_evidence(name) for name in ("train", "valid", "test")}
    column = data.encoder.column_of("item_id")
    assert column is not None
    time, user, item, clicked = (
        np.concatenate([read(rows) for rows in parts.values()])
        for read in (
            lambda rows: rows.time,
            lambda rows: rows.user,
            lambda rows: rows.ids[:, column],
            lambda rows: rows.label == 1,
        )
    )
    seen = 0
    for name, rows in parts.items():
        assert rows.evidence is not None and rows.evidence.history is not None
        counters, history = data.counters(name), rows.evidence.history()
        assert history is not None and counters is not None
        assert np.array_equal(rows.evidence.counters, counters, equal_nan=True)
        for row in range(0, len(rows), 17):
            known = np.flatnonzero((user == rows.user[row]) & (time + DELAY_US < rows.time[row]))
            known = known[np.argsort(time[known], kind="stable")][-200:]
            mine = slice(history.start[row], history.end[row])
            assert np.array_equal(history.items[mine], item[known])
            assert np.array_equal(history.clicked[mine], clicked[known])
            seen = max(seen, len(known))
    assert seen == 200


def test_taken_rows_keep_their_evidence(tmp_path: Path) -> None:
    rows = drifting.training_set(tmp_path / "set", drifting.log(600)).part_with_evidence("train")
    chosen = np.array([5, 3, 200])
    taken = rows.take(chosen).take(np.array([2, 0]))
    assert taken.evidence is not None and taken.evidence.history is not None
    assert rows.evidence is not None and rows.evidence.history is not None
    history, whole = taken.evidence.history(), rows.evidence.history()
    assert history is not None and whole is not None
    assert history.start.tolist() == whole.start[[200, 5]].tolist()
    assert np.array_equal(taken.evidence.counters, rows.evidence.counters[[200, 5]], equal_nan=True)


def test_a_schema_without_instant_statistics_has_no_evidence(tmp_path: Path) -> None:
    data = drifting.training_set(tmp_path / "set", drifting.log(600), drifting.PLAIN)
    assert data.part_with_evidence("train").evidence is None


def test_a_history_of_other_rows_is_an_error() -> None:
    history = History.of_user(np.zeros(3, np.int32), np.zeros(3, bool), 4)
    found = Evidence(np.zeros((5, 1), np.float32), lambda: history).take(np.array([0]))
    assert found.history is not None
    with pytest.raises(DataError, match="a history of 4 rows was read for a request of 5"):
        found.history()
    late = Evidence(np.zeros((5, 1), np.float32), lambda: None).take(np.array([0]))
    assert late.history is not None and late.history() is None
