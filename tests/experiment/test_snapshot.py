"""The looks of the pipeline: its steps read what is new, and find what a join of all logs finds."""

from __future__ import annotations

import random
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.experiment.files import experiment
from tests.experiment.growing import SETTLE, START, Growing
from tests.experiment.logs import T0, random_world
from thinktwice.errors import ExperimentError
from thinktwice.experiment import looks
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.evidence import Evidence
from thinktwice.experiment.exposed import EXPOSED, remember_exposed
from thinktwice.experiment.gather import Sources, evidence_of, join_logs
from thinktwice.experiment.join import EXPOSURES, REQUESTS
from thinktwice.experiment.outcomes import Window
from thinktwice.experiment.record import RECORD, append_start
from thinktwice.experiment.snapshot import (
    SNAPSHOT,
    evidence_of_snapshot,
    join_snapshot,
    read_snapshot,
    take_snapshot,
)
from thinktwice.files import write_json

FILE = experiment("exp1", arms=3, coverage=0.8, slices=["device"])
WINDOW = Window(seconds=60)


def look(folder: Path, number: int, at: datetime) -> Evidence:
    """One look of the pipeline; ``at`` instead of now."""
    logs, joined = folder / f"logs-{number}", folder / f"joined-{number}"
    taken = take_snapshot(
        logs,
        FILE.name,
        records_dir=folder / "records",
        access_logs=folder / "access",
        prediction_logs=folder / "logs",
        clicks=folder / "clicks",
        settle_seconds=SETTLE,
    )
    write_json(logs / SNAPSHOT, taken.model_copy(update={"at": at}).model_dump(mode="json"))
    counts = join_snapshot(logs, joined, folder / "records", WINDOW)
    found = evidence_of_snapshot(logs, joined)
    assert found.exposures == counts.exposures and found.at == at
    return found


def laid_out(sources: Sources, folder: Path) -> None:
    """Put the files where a gateway, its servers and the feedback service have them."""
    for name in ("access", "clicks"):
        (folder / name).mkdir(exist_ok=True)
    for path in (folder / "access").iterdir():
        path.unlink()
    for path in sources.logs.access:
        shutil.copy(path, folder / "access" / (path.name if path.name.startswith("access") else f"access-{path.name}"))
    for path in sources.clicks:
        if path.exists():
            shutil.move(path, folder / "clicks" / path.name)


def whole(folder: Path, at: datetime) -> tuple[Evidence, int]:
    out = folder / "whole"
    shutil.rmtree(out, ignore_errors=True)
    access, parts, clicks = (
        sorted((folder / n).glob(g)) for n, g in (("access", "*.log"), ("logs", "s*.parquet"), ("clicks", "*.parquet"))
    )
    sources = Sources(looks.Logs(access, parts, "log_user_id"), clicks)
    joined = join_logs(FILE, sources, out, at=at, window=WINDOW)
    exposed = pq.read_table(out / REQUESTS, columns=["arm", "unit"]).to_pylist()
    evidence = evidence_of(FILE, joined, out, started=START, coverage_since=START, at=at)
    assert pq.read_metadata(out / EXPOSURES).num_rows
    return evidence, len({(r["arm"], r["unit"]) for r in exposed if r["unit"] is not None})


def test_looks_of_the_pipeline_equal_a_join_of_all_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "GRACE", timedelta(seconds=100))
    append_start(tmp_path / "records" / FILE.name / RECORD, FILE, START)
    logs, carried = Growing(tmp_path / "logs", random_world(11, layout_of([FILE]), 120), 11, 0.0), []
    for number, step in enumerate((300, 700, 1100, 3000)):
        laid_out(logs.until(T0 + step), tmp_path)
        at = START + timedelta(seconds=step - SETTLE)
        expected, exposed = whole(tmp_path, at)
        assert look(tmp_path, number, at) == expected
        assert look(tmp_path, number, at) == expected, "a step that is repeated finds the same"
        place = tmp_path / "records" / FILE.name
        assert pq.read_metadata(place / EXPOSED).num_rows == exposed
        (kept,) = [path for path in (place / "look").iterdir() if path.name.isdigit()]
        carried.append(pq.read_metadata(kept / looks.ROWS).num_rows)
    total = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "logs").glob("served-*.parquet"))
    assert expected.exposures is not None and expected.exposures.units_in_two_arms > 0
    assert max(carried) < total / 2 and carried[-1] == 0, "closed requests are not read again"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_a_snapshot_of_nothing_is_refused(tmp_path: Path) -> None:
    folders = {"access_logs": tmp_path / "a", "prediction_logs": tmp_path / "p", "clicks": tmp_path / "c"}
    with pytest.raises(ExperimentError, match="start it first"):
        take_snapshot(tmp_path / "out", "exp1", records_dir=tmp_path, settle_seconds=0, **folders)
    append_start(tmp_path / FILE.name / RECORD, FILE, datetime.now(timezone.utc))
    for what, missing in (("access", "a"), ("prediction", "p"), ("click", "c")):
        with pytest.raises(ExperimentError, match=f"{missing} is not a folder: name the folder of the {what} logs"):
            take_snapshot(tmp_path / "out", "exp1", records_dir=tmp_path, settle_seconds=0, **folders)
        (tmp_path / missing).mkdir()
    take_snapshot(tmp_path / "out", "exp1", records_dir=tmp_path, settle_seconds=0, **folders)
    with pytest.raises(ExperimentError, match="contains no access log"):
        join_snapshot(tmp_path / "out", tmp_path / "joined", tmp_path, WINDOW)
    (tmp_path / "out" / SNAPSHOT).write_text("{")
    with pytest.raises(ExperimentError, match="not a snapshot of logs"):
        read_snapshot(tmp_path / "out")


def test_a_damaged_table_of_exposed_users_is_made_again(tmp_path: Path) -> None:
    rng, path, damaged = random.Random(0), tmp_path / EXPOSED, set[bytes]()
    table = pa.table({"experiment": ["exp1"] * 50, "unit": pa.array(range(50), pa.uint64()), "arm": ["control"] * 50})
    pq.write_table(table, tmp_path / "seen.parquet")
    assert remember_exposed([tmp_path / "seen.parquet"], path, "exp1") == 50
    whole, rows = path.read_bytes(), pq.read_table(path)
    for number in range(40):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        damaged.add(path.read_bytes())
        assert remember_exposed([tmp_path / "seen.parquet"], path, "exp1") == 50, number
        assert pq.read_table(path).equals(rows)
    aside = [found.read_bytes() for found in (tmp_path / "damaged").rglob(EXPOSED)]
    assert len(aside) > 10 and set(aside) <= damaged
