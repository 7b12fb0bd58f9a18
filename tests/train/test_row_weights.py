"""Weights of rows from a column of the log: judged by rules, kept with the rows, and obeyed by training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.synthetic import FIELDS, random_rows
from tests.validate.raw import write_raw
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.point_in_time import training_rows
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.errors import DataError
from thinktwice.models import DeepFMConfig
from thinktwice.schema import load_schema
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import fit
from thinktwice.train.weights import row_weights
from thinktwice.validate.split import split_log

SCHEMA = """
name: weighed
time: {column: t, format: s}
label: {column: y}
fields: [{name: row_kind, column: kind}]
weight: importance
quarantine_budget: 1.0
"""
START = 1_700_000_000
GOOD = ["0", "0.5", "1", "3", "1e3", "0.0", "1e-3", "1e30"]
WRONG = {
    "-1": "minimum",
    "1e31": "maximum",
    "-0.001": "minimum",
    "": "missing",
    "nan": "number",
    "inf": "number",
    "-inf": "number",
    "many": "number",
}


@settings(max_examples=3, deadline=None)
@given(st.lists(st.sampled_from([*GOOD, *WRONG]), min_size=30, max_size=60))
def test_wrong_weights_are_quarantined_by_rule_and_others_kept(
    tmp_path_factory: pytest.TempPathFactory, weights: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    weights = ["1", *weights]
    rows = len(weights)
    frame = pl.DataFrame(
        {"t": list(range(START, START + rows)), "y": [0] * rows, "kind": ["a"] * rows, "importance": weights}
    )
    result = split_log(write_raw(folder / "raw", frame, SCHEMA), folder / "clean", folder / "bad", run_id="run")
    expected = [float(text) for text in weights if text in GOOD]
    assert pl.read_parquet(folder / "clean/clean.parquet")["row_weight"].to_list() == expected
    counted: dict[str, int] = {}
    for text in weights:
        if text in WRONG:
            rule = f"row_weight:{WRONG[text]}"
            counted[rule] = counted.get(rule, 0) + 1
    assert result.reasons == counted


def test_numbers_that_are_none_are_quarantined(tmp_path: Path) -> None:
    frame = pl.DataFrame({"t": [START + n for n in range(5)], "y": [0] * 5, "kind": ["a"] * 5})
    frame = frame.with_columns(importance=pl.Series([1.5, float("nan"), None, -0.5, float("inf")]))
    result = split_log(write_raw(tmp_path / "raw", frame, SCHEMA), tmp_path / "clean", tmp_path / "bad", run_id="run")
    assert pl.read_parquet(tmp_path / "clean/clean.parquet")["row_weight"].to_list() == [1.5]
    assert sum(result.reasons.values()) == result.rows_quarantined == 4
    assert {reason.partition(":")[0] for reason in result.reasons} == {"row_weight"}


def _training_set(folder: Path, weights: np.ndarray) -> Path:
    rows = len(weights)
    frame = pl.DataFrame(
        {
            "t": list(range(START, START + rows)),
            "y": [n % 2 for n in range(rows)],
            "kind": [str(n % 3) for n in range(rows)],
            "importance": weights,
        }
    )
    raw = write_raw(folder / "raw", frame, SCHEMA)
    split_log(raw, folder / "clean", folder / "bad", run_id="run")
    schema = load_schema(folder / "clean" / "schema.yaml")
    build_training_set(training_rows(folder / "clean", schema), schema, folder / "set", SplitSpec())
    return folder / "set"


def test_the_training_set_keeps_the_weights_of_its_rows(tmp_path: Path) -> None:
    weights = np.arange(100) / 8
    data = load_training_set(_training_set(tmp_path, weights))
    found = [data.part(part).weight for part in ("train", "valid", "test")]
    assert [part.dtype for part in found if part is not None] == [np.float32] * 3
    assert np.concatenate([part for part in found if part is not None]).tolist() == weights.tolist()
    assert [field.name for field in data.encoder.fields] == ["row_kind"]  # the weight is no input of the model
    some = data.part("train").take(np.array([5, 1]))
    assert some.weight is not None and some.weight.tolist() == [0.625, 0.125]


def test_weights_of_the_log_are_multiplied_with_those_of_the_settings() -> None:
    rows = random_rows(300)
    given_weights = np.random.default_rng(0).random(300).astype(np.float32)
    weighed = replace(rows, weight=given_weights)
    found = row_weights(weighed, FinetuneConfig())
    assert found is not None and float(found.mean()) == pytest.approx(1.0)
    np.testing.assert_allclose(found.numpy(), given_weights / given_weights.mean(), rtol=1e-5)
    both = row_weights(weighed, FinetuneConfig(click_weight=3.0))
    clicks = row_weights(rows, FinetuneConfig(click_weight=3.0))
    assert both is not None and clicks is not None
    product = given_weights * clicks.numpy()
    np.testing.assert_allclose(both.numpy(), product / product.mean(), rtol=1e-5)


def _fitted(rows: EncodedRows) -> Any:
    config = FinetuneConfig(batch_size=64, table_l2=(1e-3,), augmentations=("none",), epochs=2.0)
    return fit(rows, random_rows(200, 9), FIELDS, DeepFMConfig(dim=2, hidden=(4,)), config).model.state_dict()


def test_rows_of_weight_zero_teach_nothing_and_equal_weights_change_nothing() -> None:
    rows = random_rows(400)
    weight = (np.arange(400) % 4 > 0).astype(np.float32)
    ignored = weight == 0
    flipped = replace(rows, label=np.where(ignored, 1 - rows.label, rows.label).astype(np.float32), weight=weight)
    first, second = _fitted(replace(rows, weight=weight)), _fitted(flipped)
    assert all((first[name] == second[name]).all() for name in first)
    plain, equal = _fitted(rows), _fitted(replace(rows, weight=np.full(400, 7.0, np.float32)))
    assert all((plain[name] - equal[name]).abs().max() < 1e-5 for name in plain)
    assert any((plain[name] != first[name]).any() for name in plain)


@pytest.mark.parametrize(
    ("weight", "message"),
    [(-1.0, "row 3 of the train part is -1"), (np.nan, "row 3 of the train part is nan"), (np.inf, "row 3 .* is inf")],
)
def test_a_training_set_with_wrong_weights_is_refused(weight: float, message: str) -> None:
    weights = np.ones(50, np.float32)
    weights[3] = weight
    with pytest.raises(DataError, match=message):
        _fitted(replace(random_rows(50), weight=weights))


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(DataError, match="all rows of the train part have the weight 0"):
        _fitted(replace(random_rows(50), weight=np.zeros(50, np.float32)))
