"""From logs to a decision: sums per unit against plain Python, and one whole look."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.experiment.files import experiment
from tests.experiment.logs import T0, random_world
from thinktwice.errors import ExperimentError
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.decision import decide
from thinktwice.experiment.gather import Sources, gather
from thinktwice.experiment.join import EXPOSURES, Logs
from thinktwice.experiment.metrics import SUMS
from thinktwice.experiment.outcomes import OUTCOMES
from thinktwice.experiment.query import day_of, engine
from thinktwice.experiment.unit_sums import LATENCY, UNITS, arm_latencies, arm_moments, check_arms, write_unit_sums
from thinktwice.records.events import CLICK_COLUMNS
from thinktwice.records.served import REQUEST_COLUMNS
from thinktwice.stats.moments import Moments
from thinktwice.stats.quantiles import GROUPS, Histogram, quantile

FILE = experiment(
    "exp1",
    arms=3,
    coverage=0.8,
    slices=["device"],
    guardrails=[{"metric": "latency_p50", "worse": "increase", "margin": 5}],
)
START = datetime.fromtimestamp(T0, timezone.utc)


def world_on_disk(folder: Path, seed: int = 7) -> Sources:
    world = random_world(seed, layout_of([FILE]), requests=400)
    access, predictions = world.write(folder)
    shown = [r for r in world.rows if r["log_place"] == 0][::3]
    clicks = [
        {
            "request_id": r["log_request_id"],
            "item_id": r["log_item_id"],
            "at": r["log_at"] + timedelta(seconds=5),
            "received_at": r["log_at"],
        }
        for r in shown
    ]
    pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), folder / "clicks.parquet")
    return Sources(Logs(access, predictions, "log_user_id"), [folder / "clicks.parquet"])


def test_one_whole_look(tmp_path: Path) -> None:
    sources = world_on_disk(tmp_path)
    at = START + timedelta(days=3)
    out = tmp_path / "out"
    found = gather(FILE, sources, out, started=START, coverage_since=START, at=at)
    assert found.days == 3 and found.exposures is not None and found.outcomes is not None
    assert found.outcomes.final == found.exposures.exposures and found.outcomes.matched > 50
    rows = pq.read_table(out / OUTCOMES).to_pylist()
    requests = pq.read_table(out / "requests.parquet").to_pylist()
    expected = naive_sums(rows, requests)
    arms = {arm for arm, _ in expected}
    for arm in found.arms:
        mine = {unit: v for (a, unit), v in expected.items() if a == arm.arm and unit is not None}
        moments = arm.sums.moments()
        total = np.sum(list(mine.values()), axis=0)
        lonely = [v for (a, unit), v in expected.items() if a == arm.arm and unit is None]
        assert moments.num_units == len(mine) + sum(int(v[0]) for v in lonely)
        np.testing.assert_allclose(moments.mean * moments.num_units, total + np.sum(lonely, axis=0), rtol=1e-9)
    assert arms == {"control", "t1", "t2"}
    by_slice = {(s.value, s.arm): s.sums.moments().total("impressions") for s in found.slices}
    for (value, arm), shown in by_slice.items():
        of_arm = [
            r for r in rows if r["log_enrolled"] and r["log_assigned_arm"] == arm and (r["device"] or "") == value
        ]
        assert shown == len(of_arm)
    verdict = decide(FILE, found)
    assert verdict.decision.action == "hold"
    latency = {a.arm: a.quantiles[0] for a in found.arms}
    for arm in arms:
        ms = [r["ms"] for r in requests if r["arm"] == arm]
        assert latency[arm].num_rows == len(ms) and latency[arm].value == pytest.approx(np.median(ms), rel=0.2)


def naive_sums(rows: list[dict[str, Any]], requests: list[dict[str, Any]]) -> dict[tuple[str, Any], np.ndarray]:
    found: dict[tuple[str, Any], np.ndarray] = defaultdict(lambda: np.zeros(len(SUMS)))
    place = {name: i for i, name in enumerate(SUMS)}
    for r in rows:
        if not r["log_enrolled"] or r["log_unit"] is None:
            continue
        v = found[r["log_assigned_arm"], r["log_unit"]]
        v[place["impressions"]] += 1
        v[place["clicks"]] += r["label"]
        v[place["escalated"]] += r["log_num_paths"] > 1
        v[place["probability"]] += r["log_probability"]
        v[place["paths"]] += r["log_num_paths"]
    for r in requests:
        v = found[r["arm"], r["unit"]]
        good = r["code"] is not None and 200 <= r["code"] < 300
        v[place["requests"]] += 1
        v[place["errors"]] += not good
        v[place["fallbacks"]] += good and r["served"] is not None and r["served"] != r["arm"]
    return found


def test_days_and_files_add(tmp_path: Path) -> None:
    sources = world_on_disk(tmp_path)
    out = tmp_path / "out"
    gather(FILE, sources, out, started=START, coverage_since=START, at=START + timedelta(days=3))
    whole = arm_moments([out / UNITS], "exp1")
    rows = pq.read_table(out / OUTCOMES)
    requests = pq.read_table(out / "requests.parquet")
    for part in range(2):  # rows of one unit in both halves
        folder = tmp_path / f"part-{part}"
        folder.mkdir()
        pq.write_table(rows.take(np.arange(part, rows.num_rows, 2)), folder / "o.parquet")
        pq.write_table(requests.take(np.arange(part, requests.num_rows, 2)), folder / "r.parquet")
        write_unit_sums([folder / "o.parquet"], [folder / "r.parquet"], folder)
    halves = arm_moments([tmp_path / "part-0" / UNITS, tmp_path / "part-1" / UNITS], "exp1")
    latencies = arm_latencies([tmp_path / "part-0" / LATENCY, tmp_path / "part-1" / LATENCY], "exp1")
    at_once = arm_latencies([out / LATENCY], "exp1")
    for key, moments in whole.items():
        assert halves[key].num_units == moments.num_units
        np.testing.assert_allclose(halves[key].scatter, moments.scatter, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(latencies[key[1]].counts, at_once[key[1]].counts)
    assert arm_moments([out / UNITS], "exp1", until_day=0) == {} and arm_moments([out / UNITS], "another") == {}


def test_the_engine_bins_as_the_library_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ms = np.r_[rng.lognormal(3, 2, 5000), 0.0, 0.001, 1e7, 0.01, 5.0, 5.0]
    table = {
        "request_id": [f"r{i}" for i in range(len(ms))], "experiment": ["e"] * len(ms), "arm": ["a"] * len(ms),
        "served": ["a"] * len(ms), "unit": np.arange(len(ms)), "code": [200] * len(ms), "ms": ms, "attempts": [1] * len(ms),
        "at": [START] * len(ms),
    }  # fmt: skip
    pq.write_table(pa.table({f.name: pa.array(table[f.name], f.type) for f in REQUEST_COLUMNS}), tmp_path / "r.parquet")
    write_unit_sums([], [tmp_path / "r.parquet"], tmp_path / "out")
    found = arm_latencies([tmp_path / "out" / LATENCY], "e")["a"]
    expected = Histogram.of_rows(ms, np.arange(len(ms)) % GROUPS)
    assert found.counts.sum() == len(ms)
    assert (found.counts.sum(0) != expected.counts.sum(0)).sum() <= 4  # at an edge rounding may differ
    for share in (0.1, 0.5, 0.9):
        assert quantile(found, share).value == pytest.approx(quantile(expected, share).value, rel=1e-6)


def test_a_pre_period_joins_by_unit(tmp_path: Path) -> None:
    sources = world_on_disk(tmp_path)
    out = tmp_path / "out"
    gather(FILE, sources, out, started=START, coverage_since=START, at=START + timedelta(days=3))
    found = arm_moments([out / UNITS], "exp1", before=[out / UNITS])
    for moments in found.values():
        for name in SUMS:  # its own past: every sum equals the one before
            assert moments.mean[moments.column(f"pre_{name}")] == moments.mean[moments.column(name)]
    plain = arm_moments([out / UNITS], "exp1")
    assert {k: m.num_units for k, m in found.items()} == {k: m.num_units for k, m in plain.items()}


def test_what_is_refused(tmp_path: Path) -> None:
    sources = world_on_disk(tmp_path)
    times = {"started": START, "coverage_since": START, "at": START + timedelta(days=3)}
    with pytest.raises(ExperimentError, match="no column 'country'"):
        gather(FILE.model_copy(update={"slices": ("country",)}), sources, tmp_path / "out", **times)
    with pytest.raises(ValueError, match="out of order"):
        gather(FILE, sources, tmp_path / "out", **{**times, "at": START - timedelta(days=1)})
    with pytest.raises(ExperimentError, match="the arm 't9'"):
        check_arms({("", "t9"): Moments.empty(("a",))}, ["control", "t1"], "exp1")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes((tmp_path / "out" / EXPOSURES).read_bytes()[:-100])
    with pytest.raises(ExperimentError, match="cannot be read"):
        write_unit_sums([damaged], [], tmp_path / "out")


def test_empty_logs_decide_nothing(tmp_path: Path) -> None:
    (tmp_path / "access.log").write_bytes(b"")
    sources = Sources(Logs([tmp_path / "access.log"], []), [])
    for slices in ((), ("device",)):
        file = FILE.model_copy(update={"slices": slices})
        found = gather(
            file, sources, tmp_path / "out", started=START, coverage_since=START, at=START + timedelta(days=9)
        )
        verdict = decide(file, found)
        assert (verdict.decision.action, verdict.decision.status) == ("hold", "no_data")
        assert all(r.flags == ("no_units",) for r in verdict.primary)


def test_an_interrupted_query_ends_like_any_interrupted_command(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), engine(tmp_path):
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="another"), engine(tmp_path):
        raise RuntimeError("another reason")


@pytest.mark.parametrize("hour", [0, 11, 12, 13, 23])
def test_a_day_ends_at_midnight_utc(tmp_path: Path, hour: int) -> None:
    """Before 1970 too: a day is the number of whole days, rounded down."""
    for day in (-2, 0, 20_000):
        at = datetime.fromtimestamp(0, timezone.utc) + timedelta(days=day, hours=hour, minutes=59, microseconds=999_999)
        with engine(tmp_path) as db:
            sql = f"SELECT {day_of('t')} FROM (SELECT CAST(? AS TIMESTAMPTZ) AS t)"
            assert db.execute(sql, [at]).fetchall() == [(day,)]
