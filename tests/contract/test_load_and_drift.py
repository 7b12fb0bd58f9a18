"""`load` and then `drift`, as the documents have them: made-up traffic does not look like a drifted context."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from serving.config import ServingConfig
from serving.load.drive import Target, closed_loop
from serving.load.plan import requests_of
from serving.local import kserve_process
from tests.server.conftest import champion, free_port, state
from tests.serving.small import SCHEMA
from thinktwice.cli import main
from thinktwice.files import read_json, write_json
from thinktwice.monitor.drift import DriftReport, drift_of_log
from thinktwice.release.champion import Champion

__all__ = ["champion", "state"]
pytestmark = pytest.mark.server
CONTEXT = {"slot", "bid"}
ENOUGH = 60  # answered requests from which a drift can be judged; a busy machine takes more time for them


@pytest.fixture
def served(champion: Champion, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and prediction log of a predictor that logs every request; the log is whole when it has stopped."""
    folder = tmp_path / "served"
    config = ServingConfig(prediction_log={"folder": str(folder), "sample": 1.0, "part_seconds": 0.5})  # type: ignore[arg-type]
    write_json(tmp_path / "serving.yaml", config.model_dump())
    with kserve_process.running(
        champion.bundle_dir,
        feature_store=champion.feature_store_dir,
        port=free_port(),
        log=tmp_path / "log",
        environment={"THINKTWICE_SERVING": str(tmp_path / "serving.yaml")},
    ) as server:
        yield server.url, folder


def wait_for_log(folder: Path, rows: int) -> None:
    """Until the log holds so many rows."""
    deadline = time.monotonic() + 60
    while sum(pq.read_metadata(part).num_rows for part in folder.glob("*.parquet")) < rows:
        assert time.monotonic() < deadline, "the log was not written"
        time.sleep(0.1)


def report(folder: Path, champion: Champion) -> DriftReport:
    return drift_of_log(folder, champion.bundle_dir, 100_000)


def context_of(found: DriftReport) -> dict[str, bool]:
    """Which context fields have drifted; all of them are judged."""
    moved = [m for m in found.moved if m.what == "values" and m.name in CONTEXT]
    assert {m.name for m in moved} == CONTEXT and not any(m.unjudged for m in moved)
    return {m.name: m.drifted(found.threshold) for m in moved}


def test_the_context_of_made_up_requests_does_not_drift(
    served: tuple[str, Path], champion: Champion, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, folder = served
    arguments = ["--candidates", "3", "--duration", "3", "--connections", "2", "--json", str(tmp_path / "load.json")]
    answered = 0
    while answered <= ENOUGH:
        assert main(["load", "--url", url, "--state", str(state), *arguments]) == 0
        found = read_json(tmp_path / "load.json")[0]["outcomes"]["ok"]
        assert found > 0
        answered += found
    said = " ".join(capsys.readouterr().out.split())
    assert "60 seconds" in said and "part_seconds" in said  # when the log can be read
    wait_for_log(folder, 3 * answered)
    assert context_of(report(folder, champion)) == {"slot": False, "bid": False}


def test_requests_without_a_context_do_drift(served: tuple[str, Path], champion: Champion) -> None:
    """What the first test would say if it could not fail."""
    url, folder = served
    requests = requests_of(champion.feature_store_dir, SCHEMA, count=200, candidates=3, seed=0)
    answered = 0
    while answered <= ENOUGH:
        found = closed_loop(Target(url, requests, "v1"), 2, 3.0).count("ok")
        assert found > 0
        answered += found
    wait_for_log(folder, 3 * answered)
    assert context_of(report(folder, champion)) == {"slot": True, "bid": True}
