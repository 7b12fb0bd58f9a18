"""The command line: every command is found and explained, and mistakes end in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import typer
from rich.cells import cell_len
from rich.console import Console

from thinktwice import __version__
from thinktwice.cli import GROUP, QUIET_STOP, app, main
from thinktwice.console.help import with_plain_help
from thinktwice.data.sources import registry

COMMANDS = {
    "bundle",
    "data",
    "demo",
    "drift",
    "evaluate",
    "experiment",
    "exposures",
    "features",
    "feedback",
    "gateway",
    "load",
    "openapi",
    "outcomes",
    "pipeline",
    "predict",
    "release",
    "rollout",
    "runs",
    "score",
    "serve",
    "skew",
    "tune",
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
    points = {point.name for point in entry_points(group=GROUP)}
    assert {name for name in points if "." not in name} == COMMANDS
    added = {tuple(name.split(".")) for name in points if "." in name}  # commands that another room adds to a group
    assert {path[0] for path in added} <= COMMANDS and added <= set(commands)
    assert {path[0] for path in commands if path} == COMMANDS | {"completion"}
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
            assert text.strip()[-1] in ".)", f"{where}: help of {parameter.name} is not a sentence: {text!r}"


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


ROLL_OUT = (
    *(("experiment", name) for name in ("apply", "collect", "ramp", "serve", "start", "stop")),
    ("bundle", "challenger"), ("bundle", "versions"), ("outcomes",),
)  # fmt: skip
FEATURES = (("features", "publish"), ("features", "refresh"))
#: Options that several commands have, by the commands that have them.
SHARED = {
    "--state": {
        ("drift",), ("evaluate",), ("load",), ("openapi",), ("pipeline", "run"), ("bundle", "push"), ("runs",), ("runs", "clean"), ("score",),
        ("serve",), ("skew",), *(("feedback", name) for name in ("run", "import", "replay")), *FEATURES, *ROLL_OUT,
    },
    "--work": {
        *(("feedback", name) for name in ("run", "import", "replay")),
        *(("experiment", name) for name in ("decide", "list", "replay", "report", "status")),
        *(("gateway", name) for name in ("check", "reload", "run", "status")),
        *(("rollout", name) for name in ("apply", "start", "stop")),
        ("drift",), ("evaluate",), ("load",), ("openapi",), ("pipeline", "run"), ("bundle", "push"), ("runs",), ("runs", "clean"), ("runs", "compare"),
        ("score",), ("serve",), ("skew",), ("exposures",), ("tune",), *FEATURES, *ROLL_OUT,
    },
    "--bundle": {("drift",), ("evaluate",), ("openapi",), ("score",)},
}  # fmt: skip


def options(command: Any) -> dict[str, Any]:
    return {p.opts[0]: p for p in command.params if p.param_type_name == "option"}


@pytest.mark.parametrize("name", sorted(SHARED))
def test_a_shared_option_is_the_same_everywhere(name: str, commands: dict):
    """One name, one meaning, one default: who knows it from one command knows it from all."""
    having = {path: options(command)[name] for path, command in commands.items() if name in options(command)}
    assert set(having) == SHARED[name]
    if name != "--bundle":  # whose help says what is done with it
        assert len({(p.help, str(p.default), str(p.show_default)) for p in having.values()}) == 1


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], ".thinktwice/state"),
        (["--work", "w0"], "w0/state"),
        (["--state", "s0"], "s0"),
        (["--work", "w0", "--state", "s0"], "s0"),
    ],
)
@pytest.mark.parametrize(
    "command", [["drift", "--log", "x"], ["evaluate"], ["load", "--url", "http://127.0.0.1:1"], ["openapi"], ["serve"],
                ["skew", "--log", "x"], ["bundle", "push", "--to", "s3://a/b"], ["features", "publish"]],
)  # fmt: skip
def test_the_champion_is_looked_for_where_the_options_say(
    command: list[str], arguments: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*command, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"thinktwice: {folder} contains no champion: run 'thinktwice pipeline run' first, or set --state"
    )
    assert error.count("\n") == 1


def test_a_run_puts_its_champion_where_the_other_commands_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = []

    def run_local(arguments: Any, *, work_dir: Path, state_dir: Path, on_event: Any) -> None:
        seen.append((str(work_dir), str(state_dir)))
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.run.run_local", run_local)
    for given in ([], ["--work", "w0"], ["--state", "s0"], ["--work", "w0", "--state", "s0"]):
        assert main(["pipeline", "run", *given]) == 130
    assert seen == [
        (".thinktwice", ".thinktwice/state"), ("w0", "w0/state"), (".thinktwice", "s0"), ("w0", "s0"),
    ]  # fmt: skip


@pytest.mark.parametrize("width", [30, 40, 80, 110])
def test_help_cuts_no_name_and_breaks_no_word(width: int, commands: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("thinktwice.console.help.console_here", lambda: Console(width=width))
    for path, command in commands.items():
        text = click_text(with_plain_help(command), path)
        words = text.split()
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
            assert name in words or name in text.lower(), f"{path} {name}"
            assert " ".join((parameter.help or "").split()) in " ".join(words) or width >= 80  # columns side by side
            assert set((parameter.help or "").split()) <= set(words)
        assert "…" not in text.replace("…", "", (command.help or "").count("…"))
        wide = [line for line in text.splitlines() if cell_len(line.rstrip()) > width]
        assert all(len(line.split()) == 1 for line in wide), (path, wide)


def click_text(command: Any, path: tuple[str, ...]) -> str:
    context = command.make_context(" ".join(("thinktwice", *path)), [], resilient_parsing=True)
    return command.get_help(context)


class PanicError(BaseException):
    """Like the panics of Rust libraries, no Exception."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            pa.ArrowInvalid("Integer value 1 not in range\nmore"),
            1,
            "failed with pyarrow.lib.ArrowInvalid: Integer value 1",
        ),
        (pl.exceptions.ComputeError("no"), 1, "failed with polars.exceptions.ComputeError: no; what led to it is in "),
        (PanicError("operator does not support"), 1, "PanicError: operator does not support; what led to it is in "),
        (StopIteration(), 1, "failed with StopIteration; what led to it is in "),
        (RecursionError("maximum recursion depth exceeded"), 1, "the input is nested too deeply"),
        (zipfile.BadZipFile("File is not a zip file"), 1, "an archive is damaged (File is not a zip file): copy or"),
        (MemoryError(), 1, "memory is full: end other programs"),
        (OSError(28, "No space left on device"), 1, "no space left on the disk: free some disk space and run again"),
        (PermissionError(13, "Permission denied", "/x"), 1, "cannot use /x (Permission denied): check that it exists"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_any_error_of_a_command_is_one_sentence(
    error: BaseException,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(registry, "builtin_schema_text", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(QUIET_STOP, raising=False)
    assert main(["data", "schema", "ml-1m"]) == code
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.strip()]
    assert line.startswith("thinktwice: ") and words in line and "Traceback" not in shown.err + shown.out
    for named in tmp_path.iterdir():  # for whoever mends it, and only of what nobody had foreseen
        assert str(named) in line and "Traceback" in named.read_text()
    assert ("what led to it is in" in line) == bool(list(tmp_path.iterdir()))


def complete(line: str, shell: str, **more: str) -> list[str]:
    """What the command line answers a shell that completes ``line``; the candidates without their help."""
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)} if shell == "bash" else {}
    environment = {
        **os.environ,
        **asked,
        "_TYPER_COMPLETE_ARGS": line,
        "_THINKTWICE_COMPLETE": f"complete_{shell}",
        **more,
    }
    command = [sys.executable, "-m", "thinktwice.cli"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]):
    more = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    found = " ".join(complete("thinktwice data in", shell, **more))
    assert "ingest" in found and "infer-schema" in found and "replay" not in found
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"complete_{shell}" in script and "thinktwice" in script


def test_bash_itself_completes_with_the_script(tmp_path: Path):
    program = tmp_path / "thinktwice"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m thinktwice.cli "$@"\n')
    program.chmod(0o755)
    script = (
        "source <(thinktwice completion bash); COMP_WORDS=(thinktwice pipeline run --rec); COMP_CWORD=3; "
        'COMPREPLY=(); _thinktwice_completion thinktwice; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.stdout.split() == ["--recipe"], done.stderr
