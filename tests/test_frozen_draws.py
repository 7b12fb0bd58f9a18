"""Hashes and mixers that files hold or that decide a draw, frozen: an exact score, a count or a sample depends on each.

The first two outputs of SplitMix64 from seed 0 are those of its published reference; the others were computed once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from serving.telemetry.prediction_log import SALT, PredictionLog, in_sample
from tests.serving.small import SCHEMA
from tests.serving.test_prediction_log import config, served
from thinktwice.combinations.counts import CombinationCounts
from thinktwice.combinations.sketch import FrequencySketch
from thinktwice.data.encoded import Batch
from thinktwice.data.row_ids import row_ids
from thinktwice.data.splits import SplitSpec, assign_split
from thinktwice.monitor.served import _in_share
from thinktwice.records.served import AT, PART, USER
from thinktwice.splitmix import GOLDEN, mix
from thinktwice.testtime.rowhash import hash_rows, uniforms
from thinktwice.testtime.triggers import BasePass, Random
from thinktwice.validate.split import key_hash


def test_the_mixer_is_splitmix64() -> None:
    seeds = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert mix(seeds).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1, 0x481EC0A212A9F3DB, 0xE4D971771B652C20]
    assert mix(np.array([GOLDEN])).tolist() == [0x6E789E6AA1B965F4], "the second output from seed 0"


def test_hash_of_a_set_of_rows() -> None:
    assert key_hash(np.array([0, 1, 2, 2**64 - 1], np.uint64)) == "ef5c7d7b3c1cad5e"
    assert key_hash(np.array([], np.uint64)) == "0" * 16


def test_rows_and_their_draws() -> None:
    batch = Batch(
        torch.tensor([[1, 2], [3, 4]]),
        {"s": torch.tensor([[5, 0], [6, 7]]), "a": torch.tensor([[1], [0]])},
        {"v": torch.tensor([[0.5, -1.0], [float("nan"), 0.0]])},
    )
    assert hash_rows(batch, 0).tolist() == [0x45F9736C0F9CFE6F, 0xCE92478EB05FA14F]
    assert hash_rows(batch, 7).tolist() == [0x0D279382B9D4C4F5, 0x84DBEB905B29A676]
    draws = uniforms(np.array([0, 2**63 + 5], np.uint64), 3)
    assert draws.tolist() == [
        [0.8833108082136426, 0.43152799704850997, 0.026433771592597743],
        [0.33066255455862603, 0.07103747871147381, 0.27596884610588346],
    ]


def test_the_random_trigger() -> None:
    rows = np.arange(12, dtype=np.uint64)
    seen = BasePass(np.zeros(12), np.zeros(12), np.zeros(12), rows)
    marked = Random(threshold=0.5).mark(seen)
    assert np.flatnonzero(marked.escalate).tolist() == [4, 6, 9, 10, 11]


def test_keys_and_cells_of_combination_counts() -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6], [0, 1, 1]], np.int32)
    counts = CombinationCounts.fit([ids], ((0, 1), (1, 2)), ((0, 1, 2),), (5, 6, 7))
    pairs, triples = counts.orders[2], counts.orders[3]
    assert pairs.keys.tolist() == [
        263731009937733188, 474615021619652902, 517158109561436195, 13374417510262109484, 18218385001950783447,
    ]  # fmt: skip
    assert triples.keys.tolist() == [2013939418360667822, 12242045758095226950]
    sketch = FrequencySketch.empty(capacity=1, width=16)
    sketch.add(mix(np.arange(50, dtype=np.uint64)))
    found = sketch.finished()
    assert found.noise == 3
    assert found.cells.tolist() == [
        [0, 2, 1, 3, 5, 4, 2, 2, 6, 4, 3, 4, 4, 3, 5, 1],
        [3, 2, 5, 1, 2, 2, 4, 4, 2, 5, 4, 2, 2, 5, 3, 3],
        [1, 5, 6, 1, 2, 2, 4, 4, 5, 2, 4, 2, 3, 2, 2, 4],
        [4, 6, 4, 3, 3, 4, 1, 3, 1, 3, 2, 1, 6, 0, 4, 4],
    ]


def test_samples_of_requests() -> None:
    requests = [f"r{i}" for i in range(40)]
    assert [i for i, r in enumerate(requests) if in_sample(r, 0.25)] == [2, 4, 13, 14, 18, 19, 22, 27, 28, 32, 34, 37]
    read = _in_share(pl.Series(requests), 0.25)
    assert np.flatnonzero(read).tolist() == [7, 9, 13, 14, 18, 19, 20, 25, 28, 30, 33, 35]
    assert not in_sample("\ud800", 0.5)


def test_a_random_split() -> None:
    ids = np.array(row_ids("parquet", np.arange(40)).to_pylist())
    parts = assign_split(np.zeros(40, np.int64), ids, SplitSpec(kind="random", seed=3))
    assert [np.flatnonzero(parts == part).tolist() for part in (1, 2)] == [[1, 12, 15, 21, 22, 23, 32], [6, 9, 28]]


def test_time_and_user_in_the_prediction_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SALT, "secret")
    log = PredictionLog(SCHEMA, config(tmp_path, user_ids="hashed"))
    assert log.offer(served(1))
    log.close()
    (part,) = tmp_path.glob(PART)
    rows = pq.read_table(part).to_pylist()
    assert [r[AT] for r in rows] == [datetime(2026, 9, 21, 14, 13, 20, 250_000, UTC)] * 2
    assert [r[USER] for r in rows] == ["91d6f95e284675ef64875e9c"] * 2
