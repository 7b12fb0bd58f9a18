"""The command ``evaluate``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.releases import pack
from thinktwice.cli import main
from thinktwice.evaluate.cli import evaluate
from thinktwice.files import write_json
from thinktwice.release.bundle import bundle_hash
from thinktwice.release.champion import install_champion


def test_prints_both_bundles_and_writes_the_report(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(finished / "bundle-good", finished / "set", finished / "bundle-bad", tmp_path / "out")
    out = capsys.readouterr().out
    for word in ("AUC", "logloss", "GAUC", "ECE", "cold user", "world-good", "world-bad"):
        assert word in out
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "evaluation.json").is_file()


def test_a_folder_that_is_no_bundle_gives_one_sentence(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--bundle", str(tmp_path), "--training-set", str(finished / "set")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("thinktwice: ")
    assert "not a bundle" in error
    assert error.count("\n") == 1
    assert main(["evaluate", "--bundle", str(finished / "bundle-good"), "--training-set", str(tmp_path)]) == 1
    assert "not a training set" in capsys.readouterr().err


def test_the_champion_on_the_training_set_of_the_last_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate"]) == 1
    error = capsys.readouterr().err
    assert "contains no champion" in error and "--bundle" in error and error.count("\n") == 1

    (tmp_path / "store").mkdir()
    champion = install_champion(
        tmp_path / ".thinktwice" / "state",
        bundle_dir=finished / "bundle-good",
        archive=pack(finished / "bundle-good", tmp_path / "packed"),
        feature_store_dir=tmp_path / "store",
    )
    assert champion.info.bundle_hash == bundle_hash(finished / "bundle-good")
    assert main(["evaluate"]) == 1
    error = capsys.readouterr().err
    assert "contains no finished run" in error and "--training-set" in error and error.count("\n") == 1

    write_json(tmp_path / ".thinktwice" / "last_run.json", {"training_set": str(finished / "set")})
    assert main(["evaluate"]) == 0
    assert "world-good" in capsys.readouterr().out
    assert main(["evaluate", "--bundle", str(finished / "bundle-bad")]) == 0
    assert "world-bad" in capsys.readouterr().out


def test_a_last_run_that_lost_its_files(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / ".thinktwice" / "last_run.json", {"training_set": str(tmp_path / "gone")})
    assert main(["evaluate", "--bundle", str(finished / "bundle-good")]) == 1
    error = capsys.readouterr().err
    assert "gone" in error and error.count("\n") == 1
