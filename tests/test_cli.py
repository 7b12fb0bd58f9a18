"""The command line: every verb is found and explained, and mistakes end in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer

from thinktwice import __version__
from thinktwice.cli import GROUP, app, main

VERBS = {
    "bundle",
    "data",
    "demo",
    "drift",
    "evaluate",
    "experiment",
    "load",
    "openapi",
    "pipeline",
    "predict",
    "release",
    "score",
    "serve",
    "skew",
}
ROOT = Path(__file__).resolve().parents[1]


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command under `command` with the words that lead to it."""
    yield path, command
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from walk(command.get_command(None, name), (*path, name))


@pytest.fixture(scope="module")
def commands() -> dict[tuple[str, ...], Any]:
    return dict(walk(typer.main.get_command(app)))


def test_every_room_brings_its_verbs(commands: dict):
    assert {point.name for point in entry_points(group=GROUP)} == VERBS
    assert {path[0] for path in commands if path} == VERBS
    assert ("pipeline", "run") in commands and ("pipeline", "compile") in commands


def test_every_verb_and_every_option_is_explained(commands: dict):
    for path, command in commands.items():
        where = " ".join(path) or "thinktwice"
        assert command.help and command.help.strip(), f"{where} has no help"
        for parameter in command.params:
            if getattr(parameter, "hidden", False) or parameter.name == "help":
                continue
            text = getattr(parameter, "help", None)
            assert text and len(text) > 10, f"{where}: parameter {parameter.name} has no help"
            assert text.strip()[-1] in ".)", f"{where}: help of {parameter.name} is no sentence: {text!r}"


def test_help_is_shown_for_every_verb(commands: dict, capsys: pytest.CaptureFixture[str]):
    for path, command in commands.items():
        assert main([*path, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert parameter.opts[0] in shown, f"{' '.join(path)} --help does not show {parameter.opts[0]}"


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-verb"], "No such command"),
        (["pipeline", "run", "--no-such-option"], "No such option"),
        (["pipeline", "run", "--limit", "-1"], "--limit"),
        (["pipeline", "run", "--split", "alphabetical"], "--split"),
        (["pipeline", "run", "--profile", "gpu-single"], "pipeline compile --profile gpu-single"),
        (["pipeline", "run", "--online-store", "redis"], "--redis-address"),
        (["demo", "--dataset", "netflix"], "ml-100k"),
    ],
)
def test_a_mistake_is_one_sentence_and_not_zero(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(arguments) != 0
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown


def test_help_needs_no_heavy_library():
    heavy = ("torch", "feast", "kfp", "great_expectations", "pandas")
    code = (
        "import sys; from thinktwice.cli import main; main(['--help']); "
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
