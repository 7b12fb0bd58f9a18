"""docs/exposures.md: its commands are executed in their order, and its lists are complete."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest

from serving.feedback.records import Record
from tests.conftest import ROOT
from tests.experiment.files import experiment
from tests.feedback.test_outcomes import feed, micros, served
from tests.serving.small import SCHEMA
from thinktwice.cli import main
from thinktwice.experiment.join_counts import JoinCounts
from thinktwice.experiment.outcomes import OutcomeCounts
from thinktwice.schema import load_schema

PAGE = (ROOT / "docs" / "exposures.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
NAMED = {name for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_the_commands_of_the_page(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / ".thinktwice"
    work.mkdir()
    end = served(small, tmp_path)
    shutil.move(tmp_path / "gateway", work / "gateway")
    for path in (work / "gateway").iterdir():  # as if the requests had come a day before
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**x, "ts": f"{float(x['ts']) - 100_000:.6f}"}) + "\n" for x in lines))
    at = micros(end)
    feed(tmp_path / "events", [Record("click", at, "r3", "i2", None, at), Record("tick", at + 90_000 * 10**6)])
    (tmp_path / "fresh.yaml").write_text(json.dumps(experiment("exp1", coverage=0.6).model_dump(mode="json")))
    (tmp_path / "shop.yaml").write_text(SCHEMA.to_yaml())
    monkeypatch.chdir(tmp_path)
    collect, join, train = COMMANDS
    assert main(shlex.split(collect)[1:]) == 0, capsys.readouterr().err
    assert "180 exposures" in capsys.readouterr().out
    assert main(shlex.split(join)[1:]) == 0, capsys.readouterr().err
    assert "180 outcomes, 1 of them clicked" in capsys.readouterr().out
    assert main([*shlex.split(join)[1:], "--schema", "shop.yaml"]) == 0
    words = shlex.split(train)
    assert words[:3] == ["thinktwice", "pipeline", "run"]
    path, schema = (words[words.index(name) + 1] for name in ("--path", "--schema"))
    # The pipeline reads the log by this same step; tests/pipelines run the others.
    assert main(["data", "ingest", "--source", "parquet", "--path", path, "--schema", schema, "--out", "raw"]) == 0
    assert pl.read_parquet(tmp_path / "raw" / "log.parquet").height == pl.read_parquet(path).height > 0
    assert load_schema(schema).name == SCHEMA.name


def test_the_page_names_every_count_and_file() -> None:
    counts = {*JoinCounts.model_fields, *OutcomeCounts.model_fields}
    elsewhere = {"lines", "requests", "predicted", "arms", "exposures", "final", "clicks", "wrong_bucket"}
    assert counts - elsewhere <= NAMED, "a count that the page does not explain"
    for name in (
        "exposures.parquet",
        "requests.parquet",
        "exposures.json",
        "outcomes.parquet",
        "outcomes.json",
        "log.parquet",
    ):
        assert f"`{name}`" in PAGE
