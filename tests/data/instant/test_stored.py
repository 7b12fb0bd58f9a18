"""Counters of a training set: aligned with its rows, of the whole log whatever the split, standardised by train alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.data.instant.logs import assert_same_bits, by_log, definition, frame, schema_of
from tests.data.instant.oracle import Row
from thinktwice.data.instant.stored import COUNTERS_FILE, CounterScale
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.errors import BundleError, DataError
from thinktwice.files import read_json, write_json

INSTANT = {"feedback_delay": {"click": 0, "no_click": 60}}


def log(rows: int = 400) -> list[Row]:
    rng = np.random.default_rng(3)
    times = np.sort(rng.integers(0, 40_000, rows)) * 1_000_000
    return [
        Row(int(t), bool(rng.random() < 0.4), f"u{rng.integers(9)}", f"i{rng.integers(12)}", ("a", "b"), ("c", "f"))
        for t in times
    ]


def table(rows: list[Row]) -> pl.DataFrame:
    return frame(rows).with_columns(site=pl.lit("s"))


@pytest.mark.parametrize("kind", ["time", "random"])
def test_counters_are_aligned_with_the_rows(tmp_path: Path, kind: str) -> None:
    rows = log()
    shuffled = table(rows).sample(fraction=1.0, shuffle=True, seed=1)
    spec = SplitSpec.model_validate({"kind": kind, "seed": 5})
    build_training_set(shuffled.to_arrow(), schema_of(INSTANT), tmp_path / "set", spec)
    opened, found = load_training_set(tmp_path / "set"), definition(INSTANT)
    expected = by_log(rows, found)
    for part in ("train", "valid", "test"):
        counted = opened.counters(part)
        assert counted is not None and not counted.flags.writeable and len(counted) == len(opened.part(part))
        places = [int(row_id, 16) for row_id in opened.rows(part)["row_id"]]
        assert_same_bits(np.array(counted), expected[places], found.names)


def test_the_scale_is_that_of_train(tmp_path: Path) -> None:
    build_training_set(table(log()).to_arrow(), schema_of(INSTANT), tmp_path / "set", SplitSpec())
    opened = load_training_set(tmp_path / "set")
    scale, train = opened.counter_scale, opened.counters("train")
    assert scale is not None and train is not None
    assert (scale.names, scale.definition) == (definition(INSTANT).names, definition(INSTANT).hash)
    np.testing.assert_allclose(scale.means, np.nanmean(train.astype(np.float64), axis=0), rtol=1e-9, atol=1e-9)
    spread = np.nanstd(train.astype(np.float64), axis=0)
    np.testing.assert_allclose(scale.sds, np.where(spread > 1e-6, spread, 1.0), rtol=1e-9)
    standard = scale.standardized(train)
    assert standard.dtype == np.float32 and np.abs(standard).max() <= 4
    assert (standard[np.isnan(train)] == 0).all() and np.isnan(train).any()
    np.testing.assert_allclose(scale.standardized(np.float32(scale.means) + 9 * np.float32(scale.sds)), 4.0)


def test_chunks_give_the_scale_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_training_set(table(log()).to_arrow(), schema_of(INSTANT), tmp_path / "whole", SplitSpec())
    monkeypatch.setattr("thinktwice.data.instant.stored.CHUNK_ROWS", 17)
    build_training_set(table(log()).to_arrow(), schema_of(INSTANT), tmp_path / "parts", SplitSpec())
    whole, parts = CounterScale.load(tmp_path / "whole"), CounterScale.load(tmp_path / "parts")
    np.testing.assert_allclose(whole.means, parts.means, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(whole.sds, parts.sds, rtol=1e-9)
    one, other = (load_training_set(tmp_path / name).counters("test") for name in ("whole", "parts"))
    assert one is not None and other is not None and one.tobytes() == other.tobytes()


def test_without_instant_the_training_set_is_as_ever(tmp_path: Path) -> None:
    content = schema_of(INSTANT).model_dump(mode="json") | {"statistics": None}
    schema = type(schema_of(INSTANT)).model_validate(content)
    for name, one in (("with", schema_of(INSTANT)), ("without", schema)):
        build_training_set(table(log()).to_arrow(), one, tmp_path / name, SplitSpec())
    with_, without = ({p.name: p for p in (tmp_path / name).iterdir()} for name in ("with", "without"))
    added = {COUNTERS_FILE, "train.counters.npy", "valid.counters.npy", "test.counters.npy"}
    assert with_.keys() - without.keys() == added and not without.keys() - with_.keys()
    for name in without.keys() - {"schema.yaml"}:
        assert with_[name].read_bytes() == without[name].read_bytes(), name
    opened = load_training_set(tmp_path / "without")
    assert opened.counters("train") is None and opened.counter_scale is None


def test_damaged_counters_are_refused(tmp_path: Path) -> None:
    build_training_set(table(log()).to_arrow(), schema_of(INSTANT), tmp_path / "set", SplitSpec())
    path = tmp_path / "set" / "valid.counters.npy"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-8], whole[:40], whole.replace(b"<f4", b"<i4"), whole.replace(b"<f4", b"|O")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"valid\.counters\.npy cannot be read .*: rebuild the training set"):
            load_training_set(tmp_path / "set").counters("valid")
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        load_training_set(tmp_path / "set").counters("valid")


def test_counters_of_another_definition_are_refused(tmp_path: Path) -> None:
    build_training_set(table(log()).to_arrow(), schema_of(INSTANT), tmp_path / "set", SplitSpec())
    file = tmp_path / "set" / COUNTERS_FILE
    content = read_json(file)
    write_json(file, content | {"definition": "0" * 64})
    with pytest.raises(DataError, match="are of another version: rebuild the training set"):
        load_training_set(tmp_path / "set").counters("train")
    for wrong in ({"sds": content["sds"][1:]}, {"format": 2}, {"sds": [0.0] * len(content["sds"])}, {"more": 1}):
        write_json(file, content | wrong)
        with pytest.raises(BundleError, match=r"counters\.json cannot be read"):
            CounterScale.load(tmp_path / "set")
