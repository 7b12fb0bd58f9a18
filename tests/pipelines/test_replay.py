"""From a refused log to a model of its quarantined rows, as the README tells it, in a folder whose name is all that a name can be."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.own_log import SCHEMA, write_log
from thinktwice.files import read_json
from thinktwice.parquet import num_rows, read_frame
from thinktwice.release.champion import read_champion, verify_archive

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
REPLAY = (
    "thinktwice data replay --quarantine .thinktwice/pipeline/RUN/validate/quarantine --out replayed --schema mended.yaml",
    "thinktwice pipeline run --source parquet --path replayed/clean",
)
NASTY = 'price=7 [1] *?{a,b} it\'s 100%20 "ü";#$HOME\\\\x=y'
FAST = " --recipe tiny --test-time off"


def run(line: str, cwd: Path, ends_with: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "thinktwice", *shlex.split(line)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == ends_with, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_quarantined_rows_are_judged_again_and_trained_on_in_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / NASTY
    folder.mkdir()
    log, _ = write_log(folder)
    log.rename(folder / "impressions.parquet")
    (folder / "shop.yaml").write_text(SCHEMA.replace("{name: device,", "{name: device, allowed: [phone],"))
    (folder / "mended.yaml").write_text(SCHEMA)

    refused = run(
        f"thinktwice pipeline run --source parquet --path impressions.parquet --schema shop.yaml{FAST}", folder, 1
    )
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "ledger:budget (critical)" in refused.stderr and "device:allowed" in refused.stderr
    (named,) = re.findall(r"quarantined rows are in (.*)$", refused.stderr.strip())
    quarantine = Path(folder, named)
    assert quarantine.name == "quarantine" and read_json(quarantine / "quarantine.json")["rows_quarantined"] > 4000

    replay, train = REPLAY
    place = shlex.quote(str(quarantine.relative_to(folder)))
    replayed = run(re.sub(r"--quarantine \S+", lambda _: f"--quarantine {place}", replay), folder).stdout
    rows = num_rows(quarantine / "quarantine.parquet")
    assert (
        f"{rows:,} rows judged again: {rows - 3:,} are clean now, 3 stay set aside" in replayed
    )  # three without a device
    assert f"nothing was lost: {rows:,} in = {rows - 3:,} clean + 3 set aside" in replayed
    proof = read_json(folder / "replayed/clean/clean.json")
    assert proof["conserved"] and proof["key_hash_in"] == proof["key_hash_out"]
    (next_command,) = re.findall(r"train on the clean rows: (thinktwice .*)", replayed)
    assert next_command == train

    trained = run(f"{next_command}{FAST}", folder)
    assert "✓ read the log" in trained.stdout and f"{rows - 3:,} rows" in trained.stdout
    assert "warning" in trained.stdout and "reports/data.html" in trained.stdout
    champion = read_champion(folder / ".thinktwice/state")
    assert champion is not None and verify_archive(champion)
    # The features are those of the log: no folder name has become a price.
    (training_set,) = (folder / ".thinktwice/pipeline").glob("*/build-training-set/training_set")
    prices = read_frame(training_set / "rows.parquet")["price"]
    assert prices.n_unique() > 5 and prices.drop_nulls().to_list() != [7.0] * len(prices)
    clean = training_set.parents[1] / "validate" / "clean"
    attributes = ["row_id", "price", "color"]
    known = read_frame(clean / "clean.parquet", attributes).sort("row_id")
    assert read_frame(training_set / "rows.parquet", attributes).sort("row_id").equals(known)
