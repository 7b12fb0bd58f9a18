"""Every script in examples/ runs, and shows what it says."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinktwice import models
from thinktwice.models.config import CONFIGS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def main_of(name: str) -> Callable[..., Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")["main"]  # type: ignore[no-any-return]


def test_every_script_has_its_test_and_its_line_in_the_readme():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(
        re.findall(r"^\| \[(\w+\.py)\]\(\1\) \| \S", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    )
    tested = set(re.findall(r'main_of\("(\w+)"\)', Path(__file__).read_text()))
    assert {f"{name}.py" for name in tested} == scripts


def test_own_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained = main_of("own_log")(tmp_path)
    assert trained.report.metrics["plain"]["auc"] > 0.7  # the pattern that the script draws
    assert trained.report.html.is_file()
    assert "1,497 of 1,500 rows are clean" in capsys.readouterr().out


def test_own_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name, kind in list(models.BACKBONES.items()):
        monkeypatch.setitem(models.BACKBONES, name, kind)  # undone after the test
    monkeypatch.setitem(models.BACKBONES, "pooled", None)
    monkeypatch.setitem(CONFIGS, "pooled", None)
    del models.BACKBONES["pooled"], CONFIGS["pooled"]
    found = main_of("own_backbone")(tmp_path)
    assert set(found) == {"deepfm", "pooled"} and all(0.3 < auc < 1 for auc in found.values())
    assert capsys.readouterr().out.rstrip().endswith(": Pooled")


def test_own_trigger(tmp_path: Path):
    found = main_of("own_trigger")(tmp_path)
    shares = {name: share for name, (share, _) in found.items()}
    assert shares.pop("never") == 0
    assert 0.05 < shares["near the cut"] < 0.95
    assert all(abs(share - shares["near the cut"]) < 0.02 for share in shares.values())
    assert len({loss for _, loss in found.values()}) == len(found)


def test_score_table(tmp_path: Path):
    ranked = main_of("score_table")(tmp_path)
    assert ranked.height == 200 and (tmp_path / "scores.parquet").is_file()
    assert ranked["probability"].is_sorted(descending=True) and ranked["probability"].n_unique() > 100
