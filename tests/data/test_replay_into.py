"""Rows that pass under a corrected schema go back into the log, with a proof over them and those that stay quarantined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from thinktwice.cli import main
from thinktwice.data import replay as replaying
from thinktwice.data.ingest import ingest
from thinktwice.files import read_json
from thinktwice.validate.row_keys import key_hash, read_keys
from thinktwice.validate.split import split_log

SCHEMA = """\
name: shop
time: {column: at, format: datetime}
label: {column: y}
entities: {user: {key: user}, item: {key: item}}
quarantine_budget: 1
fields:
- {name: color, allowed: [red]}
- {name: price, kind: numeric}
"""
MENDED = SCHEMA.replace("[red]", "[red, blue]")


def rows() -> pl.DataFrame:
    n = np.arange(24)
    return pl.DataFrame(
        {
            "at": [f"2024-03-01T{h:02}:00:01Z" for h in n],
            "y": n % 2,
            "user": [f'ü, "{k}"' if k % 4 else str(k) for k in n],
            "item": n % 5,
            "color": [("red", "blue", "blue", "green")[k % 4] for k in n],
            "price": [None if k % 3 else k / 7 for k in n],
            "note": ["line\nbreak" if k % 5 == 0 else None for k in n],
        }
    )


def quarantined(folder: Path, ending: str) -> tuple[Path, Path]:
    """The folder of a log, and the quarantine of its first run."""
    log = folder / "log"
    log.mkdir(parents=True)
    write = {"csv": pl.DataFrame.write_csv, "parquet": pl.DataFrame.write_parquet, "jsonl": pl.DataFrame.write_ndjson}
    write[ending](rows(), log / f"day1.{ending}")  # type: ignore[operator]
    (folder / "s.yaml").write_text(SCHEMA)
    (folder / "mended.yaml").write_text(MENDED)
    ingest("log", log, folder / "s.yaml", folder / "raw")
    split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")
    (log / f"day1.{ending}").unlink()
    write[ending](rows().filter(pl.col("color") == "red"), log / f"day2.{ending}")  # type: ignore[operator]
    return log, folder / "bad"


def command(folder: Path, log: Path, out: str = "replayed") -> list[str]:
    given = {"--quarantine": folder / "bad", "--out": folder / out, "--schema": folder / "mended.yaml", "--into": log}
    return ["data", "replay", *(str(part) for pair in given.items() for part in pair)]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_rows_that_pass_now_are_read_by_the_next_run(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, _ = quarantined(tmp_path, ending)
    assert main(command(tmp_path, log)) == 0
    shown = capsys.readouterr().out
    assert "put back 12 rows" in shown and f"--source log --path {log} --schema {tmp_path / 'mended.yaml'}" in shown
    (file,) = log.glob("replayed-*")
    assert file.suffix == f".{ending}"
    ingest("log", log, tmp_path / "mended.yaml", tmp_path / "raw2")
    result = split_log(tmp_path / "raw2", tmp_path / "clean2", tmp_path / "bad2", run_id="r")
    assert (result.rows_in, result.rows_quarantined) == (6 + 12, 0)
    clean = pl.read_parquet(tmp_path / "clean2" / "clean.parquet").sort("event_time")
    expected = rows().filter(pl.col("color") != "green")
    assert clean["user"].to_list() == expected["user"].to_list()
    assert clean["price"].to_list() == pytest.approx(expected["price"].to_list())
    raw = pl.read_parquet(tmp_path / "raw2" / "log.parquet").sort("at")
    assert raw["note"].to_list() == expected["note"].to_list()


def test_the_proof_holds_over_both(tmp_path: Path) -> None:
    log, bad = quarantined(tmp_path, "parquet")
    assert main(command(tmp_path, log)) == 0
    (proof,) = map(read_json, log.glob("_replayed-*.json"))
    assert (proof["rows_in"], proof["rows_put_back"], proof["rows_quarantined"]) == (18, 12, 6)
    before = np.concatenate([read_keys(bad / f"{n}.parquet") for n in ("quarantine", "unparsable")])
    assert proof["key_hash_in"] == proof["key_hash_out"] == key_hash(before)
    assert (
        pl.read_parquet(tmp_path / "replayed" / "quarantine" / "quarantine.parquet")["color"].to_list() == ["green"] * 6
    )


def test_a_second_replay_writes_the_same_file(tmp_path: Path) -> None:
    log, _ = quarantined(tmp_path, "csv")
    assert main(command(tmp_path, log)) == 0
    first = {file.name: file.read_bytes() for file in log.iterdir()}
    assert main(command(tmp_path, log, "again")) == 0
    assert {file.name: file.read_bytes() for file in log.iterdir()} == first


def test_rows_that_are_in_the_log_already_do_not_count_twice(tmp_path: Path) -> None:
    log, _ = quarantined(tmp_path, "csv")
    rows().write_csv(log / "day1.csv")
    (log / "day2.csv").unlink()
    assert main(command(tmp_path, log)) == 0
    ingest("log", log, tmp_path / "mended.yaml", tmp_path / "raw2")
    result = split_log(tmp_path / "raw2", tmp_path / "clean2", tmp_path / "bad2", run_id="r")
    assert result.reasons == {"color:allowed": 6, "row:duplicate": 12} and result.rows_clean == 18


def test_a_log_without_files_gets_parquet(tmp_path: Path) -> None:
    quarantined(tmp_path, "csv")
    (tmp_path / "empty").mkdir()
    assert main(command(tmp_path, tmp_path / "empty")) == 0
    assert [file.suffix for file in sorted((tmp_path / "empty").iterdir())] == [".json", ".parquet"]


@pytest.mark.parametrize(
    ("where", "words"),
    [("nowhere", "not a folder"), ("raw", "written by thinktwice"), ("clean", "written by thinktwice")],
)
def test_other_folders_are_refused(where: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quarantined(tmp_path, "csv")
    assert main(command(tmp_path, tmp_path / where)) == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob(f"{where}/replayed-*"))


def test_a_file_that_lost_a_row_is_not_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = quarantined(tmp_path, "csv")
    write = replaying._write
    monkeypatch.setattr(replaying, "_write", lambda rows, *rest: write(rows.slice(1), *rest))
    assert main(command(tmp_path, log)) == 1
    assert "nothing was put back" in capsys.readouterr().err
    assert not list(log.glob("*replayed-*"))


def test_the_proof_is_json_that_no_source_reads(tmp_path: Path) -> None:
    log, _ = quarantined(tmp_path, "jsonl")
    assert main(command(tmp_path, log)) == 0
    (proof,) = log.glob("_replayed-*.json")
    value: dict[str, Any] = json.loads(proof.read_text())
    snapshot = ingest("log", log, tmp_path / "mended.yaml", tmp_path / "raw2")
    assert value["file"] in snapshot.files and proof.name not in snapshot.files
