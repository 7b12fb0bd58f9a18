"""Every command of docs/experiments.md, in its order; those of the gateway and the roll-out are run by
tests/gateway/test_docs.py and tests/server/test_rollout.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.experiment.evidence import evidence
from tests.experiment.test_cli import a_log
from thinktwice.cli import main
from thinktwice.experiment.file import ExperimentFile, load_experiment

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    a_log(tmp_path / "clean.parquet")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    languages = {language for language, _ in blocks}
    assert languages == {"", "sh", "bash", "yaml", "python"}, "sh: of the gateway, bash: of the roll-out"
    lines = [line for language, block in blocks if language == "" for line in block.splitlines()]
    commands = []
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["thinktwice", "experiment"]
        commands.append(words[2])
        if words[2] == "decide":
            file = load_experiment(tmp_path / "fresh.yaml")
            (tmp_path / "evidence.json").write_text(evidence(file, 8).model_dump_json())
        capsys.readouterr()
        assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        assert capsys.readouterr().out.strip(), line
    assert sorted(set(commands)) == ["assign", "check", "decide", "list", "new", "plan", "replay", "report", "status"]


def test_the_fields_are_those_of_the_file() -> None:
    named = set(
        re.findall(
            r"`([a-z_]+)`",
            "\n".join(line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")),
        )
    )
    assert named == set(ExperimentFile.model_fields) - {"version", "name", "unit"}
