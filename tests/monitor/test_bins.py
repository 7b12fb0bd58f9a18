"""Bins: every row has one, the same for training, validation and live rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.serving.small import SCHEMA, training_rows
from thinktwice.data.encoder import Encoder
from thinktwice.release.bundle import load_bundle
from thinktwice.release.profile_bins import (
    COUNT_BINS,
    MISSING,
    UNKNOWN,
    count_bins,
    count_labels,
    labels,
    missing_values,
    num_bins,
    quantile_bins,
    quantile_edges,
    row_bins,
)


@pytest.fixture(scope="module")
def encoder(small: Path) -> Encoder:
    return load_bundle(small / "bundle").encoder


def binned(encoder: Encoder, frame: pl.DataFrame) -> dict[str, list[int]]:
    found = row_bins(
        encoder, encoder.encode_table(frame.to_arrow()), missing_values(encoder, frame), {"cover": np.array([1.2, 2.0])}
    )
    return {name: bins.tolist() for name, bins in found.items()}


def test_every_row_of_every_field_has_a_bin_with_a_label(encoder: Encoder) -> None:
    found = binned(encoder, training_rows(500))
    assert set(found) == {f.name for f in SCHEMA.model_fields_in_order()}
    for f in encoder.fields:
        edges = np.array([1.2, 2.0]) if f.kind == "vector" else np.zeros(0)
        assert len(labels(encoder, f, edges)) == num_bins(encoder, f, edges)
        assert min(found[f.name]) >= 0 and max(found[f.name]) < num_bins(encoder, f, edges)


def test_values_fall_where_their_labels_say(encoder: Encoder) -> None:
    frame = training_rows(6).with_columns(
        pl.Series("genre", ["g1", None, "new", "g2", "g1", "g1"]),
        pl.Series("price", [None, -1e9, 1e9, 3.0, 3.0, float("nan")]),
        pl.Series("history", [None, [], ["i1", "new"], ["i1"] * 9, ["new"], ["i2", "i3"]], pl.List(pl.String)),
        pl.Series(
            "cover",
            [None, [1.0, 0.0, 0.0], [1.2, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0] * 3, [2.0, 2.0, 0.0]],
            pl.List(pl.Float32),
        ),
    )
    found = binned(encoder, frame)
    by_name = {f.name: f for f in encoder.fields}
    genres = labels(encoder, by_name["genre"], np.zeros(0))
    assert [genres[b] for b in found["genre"]] == ["g1", "missing", "unknown", "g2", "g1", "g1"]
    assert found["genre"][1:3] == [MISSING, UNKNOWN]
    prices = labels(encoder, by_name["price"], np.zeros(0))
    assert prices[found["price"][0]] == prices[found["price"][5]] == "missing"
    assert found["price"][1] == 1 and found["price"][2] == len(prices) - 1
    lengths = labels(encoder, by_name["history"], np.zeros(0))
    assert [lengths[b] for b in found["history"]] == ["empty", "empty", "1", "5", "empty", "2"]
    assert found["cover"] == [0, 1, 2, 3, 1, 3], "1.2 as float32 is above 1.2"


def test_ids_beyond_the_most_frequent_share_a_bin(encoder: Encoder) -> None:
    item = next(f for f in encoder.fields if f.name == "item_id")
    shown = labels(encoder, item, np.zeros(0))
    assert len(shown) == 23 and shown[-1] == "other values" and len(set(shown)) == 23


def test_training_counts_fall_into_powers_of_two() -> None:
    counts = np.array([0, 1, 2, 3, 4, 7, 8, 511, 512, 1023, 1024, 1e9])
    names = count_labels()
    assert len(names) == COUNT_BINS
    assert [names[b] for b in count_bins(counts)] == [
        "never", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "256-511", "512-1023", "512-1023", "1024 or more", "1024 or more",
    ]  # fmt: skip


def test_quantiles_of_repeated_and_of_no_values() -> None:
    assert quantile_edges(np.array([np.nan, np.inf]), 10).tolist() == []
    edges = quantile_edges(np.full(50, 0.25), 10)
    assert edges.tolist() == [0.25]
    assert quantile_bins(np.array([0.2, 0.25, 0.3]), edges).tolist() == [0, 1, 1]
    values = np.random.default_rng(0).random(1000)
    assert np.bincount(quantile_bins(values, quantile_edges(values, 10))).tolist() == pytest.approx([100] * 10, abs=1)
