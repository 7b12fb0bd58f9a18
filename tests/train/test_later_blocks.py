"""Rows are scored by trunks that never saw them, nor anything after them, nor values that only they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.logs import build_small
from thinktwice.choices import SplitKind
from thinktwice.data.encoded import EncodedRows, count_values, table_offsets
from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.models.config import DeepFMConfig
from thinktwice.models.fields import FieldSpace
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.later_blocks import BLOCKS, SCORED, ScoredBlock, as_known, block_rows, later_blocks
from thinktwice.train.tune import TuningCandidate

CONFIG = FinetuneConfig(batch_size=256, table_l2=(1e-3,), augmentations=("none",), epochs=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    return load_training_set(build_small(tmp_path_factory.mktemp("later") / "set", rows=2000))


def scored(data: TrainingSet, rows: EncodedRows, split: SplitKind = "time") -> list[ScoredBlock]:
    fields = FieldSpace.of(data.schema, data.encoder)
    backbone, chosen = DeepFMConfig(dim=4, hidden=(8,)), TuningCandidate(1e-3, "none")
    return later_blocks(
        rows, data.part("valid"), fields, backbone, CONFIG, chosen, split=split, seed=0, stage="finetune"
    )


times = st.lists(st.integers(0, 12), max_size=60).map(lambda found: np.sort(np.array(found, np.int64)))


@settings(deadline=None)
@given(times)
def test_by_time_a_trunk_is_trained_on_earlier_instants_alone(time: np.ndarray) -> None:
    found = block_rows(time, "time", 0)
    assert len(found) <= SCORED
    for of, before in found:
        assert len(of) and len(before)
        assert time[before].max() < time[of].min()
        assert len(before) == (time < time[of].min()).sum()  # on all of them
    rows = np.concatenate([of for of, _ in found]) if found else np.zeros(0, np.int64)
    assert len(np.unique(rows)) == len(rows)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 2**31))
def test_at_random_a_trunk_is_trained_on_all_other_rows(rows: int, seed: int) -> None:
    found = block_rows(np.arange(rows), "random", seed)
    assert len(found) == (min(SCORED, max(rows - (BLOCKS - SCORED), 0)) if rows else 0)
    for of, before in found:
        assert np.array_equal(np.sort(np.concatenate([of, before])), np.arange(rows))


def test_labels_from_a_block_on_change_no_score_of_it(data: TrainingSet) -> None:
    rows = data.part("train")
    expected = scored(data, rows)
    assert [len(b.rows) for b in expected] == [len(rows) // 4] * 2
    for block in expected:
        label = rows.label.copy()
        label[block.rows[0] :] = 1 - label[block.rows[0] :]
        flipped = EncodedRows(rows.ids, rows.sequences, rows.vectors, label, rows.user, rows.time)
        found = next(b for b in scored(data, flipped) if np.array_equal(b.rows, block.rows))
        assert np.array_equal(found.logits, block.logits)
    later = EncodedRows(rows.ids, rows.sequences, rows.vectors, 1 - rows.label, rows.user, rows.time)
    assert not np.allclose(scored(data, later)[0].logits, expected[0].logits)  # the test can fail


def test_other_folds_score_a_fold(data: TrainingSet) -> None:
    rows = data.part("train")
    expected = scored(data, rows, "random")
    label = rows.label.copy()
    label[expected[0].rows] = 1 - label[expected[0].rows]
    flipped = EncodedRows(rows.ids, rows.sequences, rows.vectors, label, rows.user, rows.time)
    found = scored(data, flipped, "random")
    assert np.array_equal(found[0].logits, expected[0].logits)
    assert not np.array_equal(found[1].logits, expected[1].logits)


def test_values_that_earlier_rows_lack_are_unknown(data: TrainingSet) -> None:
    rows, fields = data.part("train"), FieldSpace.of(data.schema, data.encoder)
    known = count_values(rows.ids[:40], fields.num_values) > 0
    found = as_known(rows, known, fields)
    offsets = table_offsets(fields.num_values)
    for column in range(rows.ids.shape[1]):
        seen = set(rows.ids[:40, column].tolist())
        values = rows.ids[:, column]
        assert np.array_equal(found.ids[:, column], np.where(np.isin(values, list(seen)), values, 0))
    history, column = rows.sequences["history"], fields.columns.index("item_id")
    assert np.array_equal(found.sequences["history"], np.where(known[history + offsets[column]], history, 0))
    assert (found.ids != rows.ids).any() and (found.sequences["history"] != history).any()


def test_a_block_after_rows_of_one_class_is_left_out(data: TrainingSet) -> None:
    rows = data.part("train")
    label = rows.label.copy()
    label[: len(rows) // 2 + 5] = 0
    label[len(rows) // 2 + 5] = 1
    single = EncodedRows(rows.ids, rows.sequences, rows.vectors, label, rows.user, rows.time)
    assert [int(b.rows[0]) for b in scored(data, single)] == [3 * len(rows) // 4]
