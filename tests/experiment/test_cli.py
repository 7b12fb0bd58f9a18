"""The commands of ``thinktwice experiment``: what they print, what they write, and one sentence for each mistake."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.experiment.evidence import evidence
from thinktwice.cli import main
from thinktwice.experiment.file import load_experiment
from thinktwice.experiment.report import ExperimentReport


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, ends: int = 0) -> str:
    assert main(["experiment", *words]) == ends
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.out if ends == 0 else shown.err


def test_from_a_new_file_to_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "fresh.yaml" in said(capsys, "new", "fresh")
    assert "exists already" in said(capsys, "new", "fresh", ends=1)
    text = (folder / "fresh.yaml").read_text().replace("coverage: 0.0 ", "coverage: 0.5 ")
    (folder / "live.yaml").write_text(text)
    assert "2 arms, coverage 50.00%, group sequential" in said(capsys, "check", "live.yaml", "--running", "fresh.yaml")
    lines = said(capsys, "assign", "live.yaml", "user-1", "user-2", "a b").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["user-1", "user-2", "a b"]
    assert lines[2].split("\t")[1:] == ["control", "–", "not enrolled", "bad_unit"]
    file = load_experiment(folder / "live.yaml")
    assert "no experiment has a record" in said(capsys, "list")
    for day in (3, 8, 9, 10):
        found = evidence(file, day, treatment={"lift": 0.3})
        (folder / "evidence.json").write_text(found.model_dump_json())
        shown = said(capsys, "decide", "live.yaml", "--evidence", "evidence.json")
    assert "promote treatment (ship)" in shown
    assert said(capsys, "status", "fresh") == shown
    assert "promote" in said(capsys, "list")
    assert "4 decisions, all the same" in said(capsys, "replay", "fresh")
    said(capsys, "report", "fresh", "--json", "report.json")
    assert ExperimentReport.model_validate_json((folder / "report.json").read_text()).decision.arm == "treatment"


def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a-z, 0-9" in said(capsys, "new", "Not A Name", ends=1)
    assert "no experiment file" in said(capsys, "check", "none.yaml", ends=1)
    said(capsys, "new", "one")
    text = (folder / "one.yaml").read_text()
    (folder / "same-salt.yaml").write_text(text.replace("name: one", "name: two"))
    assert "use the salt 'one'" in said(capsys, "check", "one.yaml", "--beside", "same-salt.yaml", ends=1)
    (folder / "changed.yaml").write_text(text.replace("alpha: 0.05", "alpha: 0.1"))
    assert "alpha changed from 0.05 to 0.1" in said(capsys, "check", "changed.yaml", "--running", "one.yaml", ends=1)
    (folder / "evidence.json").write_text('{"format": 1}')
    assert "is not an evidence file" in said(capsys, "decide", "one.yaml", "--evidence", "evidence.json", ends=1)
    assert "no record of the experiment 'one'" in said(capsys, "status", "one", ends=1)
    assert "no log" in said(capsys, "plan", "one.yaml", "--log", "none.parquet", ends=1)


def a_log(path: Path, days: int = 20, users: int = 400) -> None:
    rng = np.random.default_rng(0)
    rate = rng.beta(2, 18, users)
    unit = rng.integers(0, users, days * users)
    pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in unit],
            "event_time": pl.from_epoch(
                rng.integers(0, days * 86_400, len(unit)) + 1_700_006_400, "s"
            ).dt.replace_time_zone("UTC"),
            "label": rng.binomial(1, rate[unit]),
        }
    ).write_parquet(path)


def test_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "new", "one")
    a_log(folder / "log.parquet")
    shown = said(capsys, "plan", "one.yaml", "--log", "log.parquet", "--effect", "0.2")
    assert "1.04 times the units of a fixed horizon" in shown and "14 " in shown
    assert "days find 20.00%" in shown or "do not find 20.00%" in shown
    text = (folder / "one.yaml").read_text()
    (folder / "past.yaml").write_text(text + "pre_period: {days: 5}\n")
    assert "of the variance" in said(capsys, "plan", "past.yaml", "--log", "log.parquet")
    (folder / "long.yaml").write_text(text + "pre_period: {days: 60}\n")
    assert "too short" in said(capsys, "plan", "long.yaml", "--log", "log.parquet", ends=1)
    assert "no column 'who'" in said(capsys, "plan", "one.yaml", "--log", "log.parquet", "--unit", "who", ends=1)
    assert "not a time" in said(capsys, "plan", "one.yaml", "--log", "log.parquet", "--time", "label", ends=1)
    assert "not 0 or 1" in said(capsys, "plan", "one.yaml", "--log", "log.parquet", "--label", "user_id", ends=1)
    (folder / "errors.yaml").write_text(text.replace("metric: ctr", "metric: error_rate", 1))
    errors = (
        (folder / "errors.yaml").read_text().replace("  - {metric: error_rate, worse: increase, margin: 0.001}\n", "")
    )
    (folder / "errors.yaml").write_text(errors)
    assert "cannot be planned" in said(capsys, "plan", "errors.yaml", "--log", "log.parquet", ends=1)


@pytest.mark.parametrize("odd", [5, -1, 0.5, None, math.nan, math.inf], ids=str)
def test_a_label_that_is_not_0_or_1_is_not_planned_from(
    folder: Path, capsys: pytest.CaptureFixture[str], odd: float | None
) -> None:
    """A rating of 5 would be five clicks."""
    said(capsys, "new", "one")
    a_log(folder / "log.parquet", days=3, users=30)
    log = pl.read_parquet(folder / "log.parquet").with_columns(pl.col("label").cast(pl.Float64))
    worse = log.with_columns(label=pl.when(pl.int_range(pl.len()) == 7).then(pl.lit(odd)).otherwise(pl.col("label")))
    worse.write_parquet(folder / "odd.parquet")
    assert "not 0 or 1" in said(capsys, "plan", "one.yaml", "--log", "odd.parquet", ends=1)


@pytest.mark.parametrize("kind", [pl.Boolean, pl.Int8, pl.UInt64, pl.Float32, pl.String, pl.Datetime, pl.List(pl.Int8)])
def test_a_label_of_any_type_is_planned_from_or_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: Any
) -> None:
    said(capsys, "new", "one")
    a_log(folder / "log.parquet", days=3, users=30)
    log = pl.read_parquet(folder / "log.parquet")
    values = pl.concat_list("label") if isinstance(kind, pl.List) else pl.col("label")
    log.with_columns(values.cast(kind).alias("label")).write_parquet(folder / "kind.parquet")
    good = kind in (pl.Boolean, pl.Int8, pl.UInt64, pl.Float32)
    shown = said(capsys, "plan", "one.yaml", "--log", "kind.parquet", ends=0 if good else 1)
    assert "not 0 or 1" in shown or good
