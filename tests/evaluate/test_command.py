"""The verb ``evaluate``."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinktwice.cli import main
from thinktwice.evaluate.cli import evaluate


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
    assert "no bundle" in error
    assert error.count("\n") == 1
    assert main(["evaluate", "--bundle", str(finished / "bundle-good"), "--training-set", str(tmp_path)]) == 1
    assert "no training set" in capsys.readouterr().err
