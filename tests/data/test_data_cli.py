"""``thinktwice data``: what it prints, and that every command and option explains itself."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from tests.validate.raw import SHOP, shop_columns, write_raw
from thinktwice.data import cache
from thinktwice.data.cli import app
from thinktwice.data.sources.registry import SOURCES
from thinktwice.errors import DataError, ResourceError
from thinktwice.schema import parse_schema
from thinktwice.validate.split import split_log

COMMANDS = {"fields", "infer-schema", "schema-reference", "list", "fetch", "ingest", "simulate", "schema", "replay"}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_verb_and_option_has_a_help_text() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert set(commands) == COMMANDS
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
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
    assert "1 rows in " in text and "1 line could not be split" in text


def test_fetch_prints_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache, "fetch", lambda name: tmp_path / name)
    assert run("fetch", "ml-1m").strip() == str(tmp_path / "ml-1m")
    with pytest.raises(DataError, match="'criteo' cannot be fetched"):
        run("fetch", "criteo")
    with pytest.raises(DataError, match="unknown source 'nothing'"):
        run("fetch", "nothing")


def test_a_simulated_log_is_ingested_without_a_schema(tmp_path: Path) -> None:
    sizes = ("--rows", "500", "--users", "100", "--items", "100", "--noise", "0.3")
    run("simulate", *sizes, "--out", str(tmp_path / "sim"))
    text = run("ingest", "--source", "parquet", "--path", str(tmp_path / "sim"), "--out", str(tmp_path / "raw"))
    assert text.startswith("500 rows in ")
    assert (tmp_path / "raw/schema.yaml").read_text() == (tmp_path / "sim/schema.yaml").read_text()


def test_an_out_that_would_be_lost_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\t".join(map(str, range(40))))
    notes, photos = tmp_path / "notes.txt", tmp_path / "photos"
    notes.write_text("mine")
    photos.mkdir()
    (photos / "a.png").touch()
    for out in (notes, photos):
        with pytest.raises(DataError, match=f"{out.name} exists and is not a raw log folder"):
            run("ingest", "--source", "criteo", "--path", str(tmp_path / "train.txt"), "--out", str(out))
        with pytest.raises(DataError, match="give --out a new folder"):
            run("simulate", "--rows", "500", "--out", str(out))
    assert notes.read_text() == "mine" and (photos / "a.png").exists()


def test_an_out_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\t".join(map(str, range(40))))
    out = tmp_path / "train.txt" / "raw"
    with pytest.raises(
        ResourceError, match=r"train\.txt.* cannot be written \((Not a directory|File exists)\): give --out"
    ):
        run("ingest", "--source", "criteo", "--path", str(tmp_path / "train.txt"), "--out", str(out))


def quarantine_of_a_strict_schema(folder: Path) -> Path:
    """A quarantine of 200 rows, because ``desk`` was not allowed, and the mended ``mended.yaml`` beside it."""
    raw = write_raw(folder / "raw", shop_columns(400), SHOP.replace("[phone, desk]", "[phone]"))
    found = split_log(raw, folder / "clean", folder / "bad", run_id="r")
    assert found.reasons == {"device:allowed": 200}
    (folder / "mended.yaml").write_text(SHOP)
    return folder / "bad"


def test_replay_takes_back_what_a_mended_schema_allows(tmp_path: Path) -> None:
    bad = quarantine_of_a_strict_schema(tmp_path)
    text = run("replay", "--quarantine", str(bad), "--out", str(tmp_path / "same"))
    assert text.startswith("200 rows judged again: 0 are clean now, 200 stay set aside")
    mended = ("--schema", str(tmp_path / "mended.yaml"))
    text = run("replay", "--quarantine", str(bad), *mended, "--out", str(tmp_path / "new"))
    assert text.startswith("200 rows judged again: 200 are clean now, 0 stay set aside")
    assert pl.read_parquet(tmp_path / "new/clean/clean.parquet")["device"].to_list() == ["desk"] * 200
    assert pl.read_parquet(bad / "quarantine.parquet").height == 200, "the old quarantine stays"


def test_replay_does_not_let_the_future_pass(tmp_path: Path) -> None:
    columns = shop_columns(20)
    columns["ts"][3] = "3786912000"  # 2090
    raw = write_raw(tmp_path / "raw", columns)
    split_log(raw, tmp_path / "clean", tmp_path / "bad", run_id="r", as_of=datetime(2030, 1, 1, tzinfo=timezone.utc))
    text = run("replay", "--quarantine", str(tmp_path / "bad"), "--out", str(tmp_path / "new"))
    assert text.startswith("1 rows judged again: 0 are clean now")


def test_replay_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    bad = quarantine_of_a_strict_schema(tmp_path)
    with pytest.raises(DataError, match=r"clean is not a quarantine \(no quarantine\.json\): give"):
        run("replay", "--quarantine", str(tmp_path / "clean"), "--out", str(tmp_path / "new"))
    run("replay", "--quarantine", str(bad), "--out", str(tmp_path / "new"))
    with pytest.raises(DataError, match="new already contains a replay: give a new folder"):
        run("replay", "--quarantine", str(bad), "--out", str(tmp_path / "new"))
    with pytest.raises(ResourceError, match="cannot be written"):
        run("replay", "--quarantine", str(bad), "--out", str(bad / "quarantine.json"))
    (bad / "quarantine.json").write_text("{}")
    with pytest.raises(DataError, match=r"quarantine\.json names no columns"):
        run("replay", "--quarantine", str(bad), "--out", str(tmp_path / "other"))
