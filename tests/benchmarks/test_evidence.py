"""The study of evidence on a small log: every method is there, and shares of a second look add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence.__main__ import bars_of, table
from benchmarks.evidence.study import SHARES, _mixed, study
from tests.selection import drifting


def test_every_method_is_measured(tmp_path: Path) -> None:
    data = drifting.training_set(tmp_path / "set", drifting.log())
    found = study({"at once": data}, "tiny", 0)
    methods = found["delays"]["at once"]
    assert set(methods) == {"correction", "other_counters", "trees", "retrieval"}
    for name in ("correction", "trees"):
        assert methods[name]["auc_change"]["low"] > 0
    assert abs(methods["other_counters"]["auc_change"]["value"]) < 0.01
    shares = methods["retrieval"]["shares"]
    assert set(shares) == {"random", "entropy", "moved", "oracle"}
    for kept in shares.values():
        assert list(kept) == [f"{share:g}" for share in SHARES]
        assert kept["1"]["kept"] == pytest.approx(1.0)
        assert kept["1"]["auc_change"]["value"] == methods["retrieval"]["all_rows"]["auc_change"]["value"]
    runs = {"small": [found]}
    assert len(bars_of(runs)) == 4 and "labels known at once" in table(runs)
    worse = {"small": [found | {"two_trunks": methods["retrieval"]["all_rows"] | {"auc_change": {"value": 1.0}}}]}
    assert not all(bar["holds"] for bar in bars_of(worse))


def test_the_rows_of_the_highest_signal_get_the_second_score() -> None:
    signal, first, second = np.array([1.0, 4.0, 3.0, 2.0]), np.zeros(4), np.ones(4)
    assert _mixed(signal, 0.5, first, second).tolist() == [0, 1, 1, 0]
    assert _mixed(signal, 0.0, first, second).tolist() == [0, 0, 0, 0]
    assert _mixed(signal, 1.0, first, second).tolist() == [1, 1, 1, 1]
