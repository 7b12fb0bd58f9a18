"""The command that joins the logs of gateway and predictors: while they are written, rotated, damaged, and after a kill."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.gateway.collect import collect
from tests.experiment.files import experiment
from tests.experiment.logs import COLUMNS, random_world
from thinktwice.cli import main
from thinktwice.errors import DataError, ExperimentError
from thinktwice.experiment.access_logs import frozen_access_logs
from thinktwice.experiment.assignment import layout_of
from thinktwice.experiment.exposures import COLLECTED, KEPT, collect_exposures, read_collected, sole_writer
from thinktwice.experiment.join import EXPOSURES, REQUESTS
from thinktwice.records.served import USER_IDS

FILE = experiment("exp1", arms=3, coverage=0.8)
EARLY, LATE = datetime(2023, 1, 1, tzinfo=timezone.utc), datetime(2030, 1, 1, tzinfo=timezone.utc)


def logs(folder: Path, seed: int = 3) -> tuple[Path, Path]:
    """A gateway's folder and a prediction log."""
    world = random_world(seed, layout_of([FILE]))
    gateway, served = folder / "gateway", folder / "served"
    for path in (gateway, served):
        path.mkdir(parents=True)
    access, predictions = world.write(folder)
    access[0].rename(gateway / "access-20260101T000000000000.log")
    access[1].rename(gateway / "access.log")
    for part in predictions:
        part.rename(served / part.name)
    return gateway, served


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateway, served = logs(tmp_path)
    (tmp_path / "exp.yaml").write_text(json.dumps(FILE.model_dump(mode="json")))
    out = tmp_path / "new" / "exposures"
    line = [
        "exposures",
        str(tmp_path / "exp.yaml"),
        "--gateway",
        str(gateway),
        "--served",
        str(served),
        "--out",
        str(out),
    ]
    assert main([*line, "--settle", "0"]) == 0, capsys.readouterr().err
    found = read_collected(out)
    assert f"{found.counts.exposures:,} exposures" in capsys.readouterr().out
    assert found.counts.joined > 20 and found.counts.unanswered > 0 and found.counts.open == 0
    assert pq.read_table(out / EXPOSURES).num_rows == found.counts.exposures
    assert {p.name for p in out.iterdir()} == {EXPOSURES, REQUESTS, COLLECTED, KEPT}
    assert main(line) == 0, "the logs are older than the time to settle"
    assert read_collected(out).counts == found.counts
    assert sorted(p.name for p in out.parent.iterdir()) == [".exposures.lock", "exposures"], "nothing is left behind"


def test_what_is_not_yet_written_is_open(tmp_path: Path) -> None:
    gateway, served = logs(tmp_path)
    before = collect([FILE], gateway, [served], tmp_path / "out", EARLY).counts
    after = collect([FILE], gateway, [served], tmp_path / "out", LATE).counts
    assert before.joined == before.requests == before.lost == before.unexplained == before.exposures == 0
    assert before.open == after.requests and after.open == after.open_predicted == 0
    assert before.open_predicted + before.shadow == before.predicted == after.predicted


def test_a_log_that_grows_and_is_rotated_is_read_once(tmp_path: Path) -> None:
    """Every line that was complete at the start is there, none twice."""
    stop, written = threading.Event(), [0]

    def write() -> None:
        number = 0
        while not stop.is_set():
            with (tmp_path / "access.log").open("a") as file:
                for _ in range(20):
                    number += 1
                    file.write(f"{number}\n")
                    file.flush()
                    written[0] = number
            os.replace(tmp_path / "access.log", tmp_path / f"access-{number:09}.log")
            stop.wait(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while written[0] < 100:
            time.sleep(0.001)
        for _ in range(50):
            least = written[0]
            with frozen_access_logs(tmp_path, tmp_path / "copy") as files:
                numbers = [
                    int(line) for file in files for line in file.read_text().splitlines(True) if line[-1] == "\n"
                ]
            assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= least
    finally:
        stop.set()
        writer.join()
    assert not (tmp_path / "copy").exists()


KILLED = """
import sys, time, threading, os, signal
from datetime import datetime, timezone
from pathlib import Path
from serving.gateway.collect import collect
from tests.experiment.files import experiment
root = Path(sys.argv[1])
watch = float(sys.argv[2])
threading.Timer(watch, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
while True:
    collect([experiment("exp1", arms=3, coverage=0.8)], root / "gateway", [root / "served"], root / "out", datetime(2030, 1, 1, tzinfo=timezone.utc))
"""


def test_a_kill_at_any_moment_is_repaired_by_a_rerun(tmp_path: Path) -> None:
    gateway, served = logs(tmp_path)
    whole = collect([FILE], gateway, [served], tmp_path / "whole", LATE).counts
    for number in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(0.02 + 0.11 * number)], timeout=60)
        assert done.returncode == -signal.SIGKILL
        if (tmp_path / "out").exists():
            assert read_collected(tmp_path / "out").counts == whole
            assert pq.read_table(tmp_path / "out" / EXPOSURES).num_rows == whole.exposures
    (tmp_path / ".out.left.part").mkdir()
    assert collect([FILE], gateway, [served], tmp_path / "out", LATE).counts == whole
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == [".out.lock"]


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    gateway, served = logs(tmp_path)
    with sole_writer(tmp_path / "out"), pytest.raises(ExperimentError, match="another run writes"):
        collect([FILE], gateway, [served], tmp_path / "out", LATE)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateway, served = logs(tmp_path)
    with pytest.raises(DataError, match="no prediction log"):
        collect([FILE], gateway, [tmp_path / "nowhere"], tmp_path / "out", LATE)
    with pytest.raises(ExperimentError, match="contains no access log"):
        collect([FILE], tmp_path, [served], tmp_path / "out", LATE)
    with pytest.raises(ExperimentError, match="collect them with"):
        read_collected(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = collect([FILE], gateway, [served], tmp_path / "out", LATE)
    (served / "served-9.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ExperimentError, match="served-9"):
        collect([FILE], gateway, [served], tmp_path / "out", LATE)
    assert read_collected(tmp_path / "out") == kept, "the last collection stays"
    (tmp_path / "out" / COLLECTED).write_text("{}")
    with pytest.raises(ExperimentError, match="collect the exposures again"):
        read_collected(tmp_path / "out")


def test_how_ids_are_hidden_is_remembered(tmp_path: Path) -> None:
    gateway, served = logs(tmp_path)
    hidden = COLUMNS.with_metadata({USER_IDS: b"hashed"})
    pq.write_table(pa.Table.from_pylist([], hidden), served / "served-8.parquet")
    assert collect([FILE], gateway, [served], tmp_path / "out", LATE).user_ids == "hashed"


FULL = """
import resource, signal, sys
from datetime import datetime, timezone
from pathlib import Path
from serving.gateway.collect import collect
from tests.experiment.files import experiment
from thinktwice.errors import ThinktwiceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    collect([experiment("exp1", arms=3, coverage=0.8)], root / "gateway", [root / "served"], root / "out", datetime(2030, 1, 1, tzinfo=timezone.utc))
except ThinktwiceError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 1000, 4000])
def test_a_file_that_cannot_be_written_is_an_error_and_keeps_the_last_collection(tmp_path: Path, limit: int) -> None:
    gateway, served = logs(tmp_path)
    kept = collect([FILE], gateway, [served], tmp_path / "out", LATE)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and str(tmp_path) in done.stdout, done.stderr
    assert read_collected(tmp_path / "out") == kept
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_rows_of_an_earlier_experiment_are_not_compared_with_this_one(tmp_path: Path) -> None:
    gateway, served = logs(tmp_path)
    own = collect_exposures([FILE], [gateway / "access.log"], sorted(served.iterdir()), tmp_path / "a", LATE).counts
    later = experiment("exp2", arms=2, coverage=1.0)
    counts = collect_exposures([later], [gateway / "access.log"], sorted(served.iterdir()), tmp_path / "b", LATE).counts
    assert counts.joined == own.joined and counts.wrong_arm <= own.wrong_arm
