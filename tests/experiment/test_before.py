"""The days before an experiment: their sums reduce the variance of its looks, and are read once."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.rollout.collect import collect
from serving.rollout.servers import GATEWAY, SERVED
from tests.experiment.files import experiment
from tests.experiment.logs import COLUMNS, unit_key
from thinktwice.experiment.assignment import assign, layout_of
from thinktwice.experiment.before import sums_before
from thinktwice.experiment.decision import decide
from thinktwice.experiment.join import Logs
from thinktwice.experiment.metrics import SUMS
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.record import RECORD, append_start, read_lines, state_of
from thinktwice.experiment.snapshot import SNAPSHOT, evidence_of_snapshot, join_snapshot, take_snapshot
from thinktwice.files import write_json
from thinktwice.records.events import CLICK_COLUMNS

DAY = 86_400.0
STARTED = datetime(2026, 3, 10, 6, 30, tzinfo=timezone.utc)
FILE = experiment(
    "exp1", coverage=1.0, pre_period={"days": 2}, horizon={"days": 2, "looks": 2}, minimum={"days": 0, "units": 2}
)
AT = STARTED + timedelta(days=1)
WINDOW = Window(seconds=600, late_seconds=60)
USERS = 240


def write_world(folder: Path) -> tuple[Path, Path, Path]:
    """Three days before the start and one after it: users of very different click rates, who click alike on every day."""
    rng, layout = np.random.default_rng(0), layout_of([FILE])
    rates = rng.beta(1, 3, USERS)
    lines: list[dict[str, Any]] = []
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    clicks = []
    for number in range(USERS * 12):
        user, past = number % USERS, number < USERS * 9
        unit, at = f"u{user}", STARTED.timestamp() + (-3 + number / USERS / 3) * DAY + (1 if not past else 0)
        found, request = assign(layout, unit), f"r{number}"
        inside = None if past else found
        lines.append(
            {
                "ts": f"{at:.6f}", "request_id": request, "experiment": inside.experiment if inside else "none",
                "assigned": inside.arm if inside else "control", "enrolled": "1" if inside else "0",
                "served": inside.arm if inside else "control", "code": 200, "attempts": 1, "ms": 10, "route": "split",
            }
        )  # fmt: skip
        shown_at = datetime.fromtimestamp(at, timezone.utc)
        for place in range(3):
            rows[past].append(
                {
                    "log_request_id": request, "log_at": shown_at, "log_arm": lines[-1]["served"], "log_model_version": "m",
                    "log_bundle_hash": "h", "log_item_id": f"i{place}", "log_place": place, "log_probability": float(rates[user]),
                    "log_num_paths": 1, "log_experiment": lines[-1]["experiment"], "log_assigned_arm": lines[-1]["assigned"],
                    "log_enrolled": bool(inside), "log_unit": None if user == 7 and past else unit_key(unit),
                    "log_bucket": found.bucket, "log_attempt": 1, "log_shadow": False, "log_user_id": unit, "device": "tv",
                }
            )  # fmt: skip
            if rng.random() < rates[user]:
                clicks.append({"request_id": request, "item_id": f"i{place}", "at": shown_at, "received_at": shown_at})
    access, served, clicked = folder / GATEWAY, folder / SERVED / "control", folder / "clicks"
    for place_of in (access, served, clicked):
        place_of.mkdir(parents=True)
    (access / "access.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for past, part in rows.items():
        path = served / f"served-{int(not past)}.parquet"
        pq.write_table(pa.Table.from_pylist(part, COLUMNS), path)
        written = STARTED.timestamp() + (-0.1 if past else 1.0) * DAY
        os.utime(path, (written, written))
    without = COLUMNS.remove(COLUMNS.get_field_index("log_unit"))  # of a server before it knew experiments
    pq.write_table(pa.Table.from_pylist([dict.fromkeys(without.names)], without), served / "served-2.parquet")
    os.utime(served / "served-2.parquet", (STARTED.timestamp() - DAY,) * 2)
    pq.write_table(pa.Table.from_pylist(clicks, CLICK_COLUMNS), clicked / "clicks.parquet")
    return access, served, clicked


def logs_of(access: Path, served: Path) -> Logs:
    return Logs([access / "access.log"], sorted(served.glob("*.parquet")))


def naive(served: Path, clicked: Path) -> dict[tuple[int, int], list[float]]:
    clicks = {(c["request_id"], c["item_id"]) for c in pq.read_table(clicked / "clicks.parquet").to_pylist()}
    sums: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in pq.read_table(served / "served-0.parquet").to_pylist():
        if row["log_unit"] is not None and STARTED - timedelta(days=2) <= row["log_at"] < STARTED:
            found = sums[row["log_unit"], int(row["log_at"].timestamp() // DAY)]
            found[0] += 1
            found[1] += (row["log_request_id"], row["log_item_id"]) in clicks
    return dict(sums)


def test_the_sums_of_the_declared_days_are_read_once(tmp_path: Path) -> None:
    access, served, clicked = write_world(tmp_path)
    clicks, kept = [clicked / "clicks.parquet"], tmp_path / "kept"
    expected = naive(served, clicked)
    left = kept / ".before.killed.part"
    left.mkdir(parents=True)
    for at in (STARTED + timedelta(seconds=30), AT):  # the windows of the last clicks are open; they have ended
        (table,) = sums_before(FILE, logs_of(access, served), clicks, kept, started=STARTED, at=at, window=WINDOW)
        assert (table.name == "before-open.parquet") is (at < AT) and not left.exists()
    rows = pq.read_table(table).to_pylist()
    assert {(r["unit"], r["day"]): [r["impressions"], r["clicks"]] for r in rows} == expected
    assert {(r["experiment"], r["arm"], r["slice"]) for r in rows} == {("", "", "")}
    (again,) = sums_before(FILE, Logs([], []), [], kept, started=STARTED, at=AT, window=WINDOW)
    assert again == table, "no log is read"
    other = sums_before(FILE, Logs([], []), [], kept, started=STARTED, at=AT, window=Window(seconds=61))
    assert other != [table]
    plain = experiment("exp1", coverage=1.0)
    assert sums_before(plain, logs_of(access, served), clicks, kept, started=STARTED, at=AT, window=WINDOW) == []


@pytest.mark.parametrize("where", ["pipeline", "local"])
def test_a_declared_pre_period_reduces_the_variance_of_a_look(tmp_path: Path, where: str) -> None:
    access, served, clicked = write_world(tmp_path)
    record = tmp_path / "records" / FILE.name / RECORD
    append_start(record, FILE, STARTED)
    if where == "local":
        found = collect(
            state_of(read_lines(record)), tmp_path, [clicked / "clicks.parquet"], tmp_path / "look", at=AT, window=WINDOW,
            exposed=tmp_path / "exposed.parquet",
        )  # fmt: skip
    else:
        (served / "served-2.parquet").unlink()  # the pipeline reads every part
        taken = take_snapshot(
            tmp_path / "logs", FILE.name, records_dir=tmp_path / "records", access_logs=access, prediction_logs=served,
            clicks=clicked, settle_seconds=0,
        )  # fmt: skip
        write_json(tmp_path / "logs" / SNAPSHOT, taken.model_copy(update={"at": AT}).model_dump(mode="json"))
        join_snapshot(tmp_path / "logs", tmp_path / "joined", tmp_path / "records", WINDOW)
        found = evidence_of_snapshot(tmp_path / "logs", tmp_path / "joined")
    units = {unit for unit, _ in naive(served, clicked)}
    assert sum(arm.units for arm in found.arms) == USERS and len(units) == USERS - 1
    shown = [arm.sums.moments() for arm in found.arms]
    assert shown[0].names == (*SUMS, *(f"pre_{name}" for name in SUMS))
    total = sum(sums[1] for sums in naive(served, clicked).values())
    assert sum(m.total("pre_clicks") for m in shown) == pytest.approx(total)
    verdict = decide(FILE, found)
    assert verdict.primary[0].variance_reduction > 0.3
    assert {c.name: c for c in verdict.checks}["pre_exposure_bias"].passed is True
