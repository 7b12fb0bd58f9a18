"""``thinktwice data``: what it prints, and that every verb and option explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from thinktwice.data import cache
from thinktwice.data.cli import app
from thinktwice.data.sources.registry import SOURCES
from thinktwice.errors import DataError
from thinktwice.schema import parse_schema

VERBS = {"list", "fetch", "ingest", "simulate", "schema", "replay"}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_verb_and_option_has_a_help_text() -> None:
    group = typer.main.get_command(app)
    verbs = group.commands  # type: ignore[attr-defined]
    assert set(verbs) == VERBS
    for name, verb in verbs.items():
        assert verb.help, name
        for parameter in verb.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_list_names_every_source() -> None:
    text = run("list")
    assert all(any(line.startswith(name) for line in text.splitlines()) for name in SOURCES)


def test_schema_prints_a_schema_that_can_be_used() -> None:
    assert parse_schema(run("schema", "ml-1m"), where="output").name == "ml-1m"
    with pytest.raises(DataError, match="has no schema of its own"):
        run("schema", "parquet")


def test_simulate_and_ingest_write_a_folder(tmp_path: Path) -> None:
    text = run("simulate", "--rows", "500", "--users", "100", "--items", "100", "--out", str(tmp_path / "sim"))
    assert text.startswith("500 rows in ")
    assert sorted(p.name for p in (tmp_path / "sim").iterdir()) == [
        "log.parquet",
        "schema.yaml",
        "snapshot.json",
        "unparsable.parquet",
    ]
    (tmp_path / "train.txt").write_text("\t".join(map(str, range(40))) + "\nbroken\n")
    text = run("ingest", "--source", "criteo", "--path", str(tmp_path / "train.txt"), "--out", str(tmp_path / "raw"))
    assert "1 rows in " in text and "1 lines could not be split" in text


def test_fetch_prints_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache, "fetch", lambda name: tmp_path / name)
    assert run("fetch", "ml-1m").strip() == str(tmp_path / "ml-1m")
    with pytest.raises(DataError, match="'criteo' cannot be fetched"):
        run("fetch", "criteo")
    with pytest.raises(DataError, match="unknown source 'nothing'"):
        run("fetch", "nothing")
