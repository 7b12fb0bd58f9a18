"""Hostile values on the command line: shown as they are, without driving the terminal or passing for something else."""

from __future__ import annotations

import ast
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table

from demo.answer import print_answer
from demo.question import Question
from tests.evaluate.samples import EVALUATION
from thinktwice.cli import main
from thinktwice.console.stages import StageBoard
from thinktwice.console.terminal import Terminal
from thinktwice.errors import DataError
from thinktwice.evaluate.table import print_results
from thinktwice.printable import printable

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("thinktwice", "serving", "components", "pipelines", "feature_repo")
HOSTILE = [
    "[/foo]",
    "[red]x",
    "[link=http://evil.example]x[/link]",
    ":apple:",
    "\\[a]\\",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\rb",
    "a\b\bc",
    "\u202eabc",
    "\u200b",
    "\u2028x",
    "\ud800",
    "\x00",
    "İ 本　屋",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))


def controls(text: str) -> list[str]:
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co")]


def shown(draw: object, *, terminal: bool = False) -> str:
    """What a console prints of something, with one column for it."""
    out = io.StringIO()
    Terminal(file=out, width=2000, force_terminal=terminal, color_system=None).print(draw, soft_wrap=True)
    return out.getvalue()


@given(st.text())
@example("\ud800\udfff")
def test_printable_escapes_what_controls_and_keeps_what_shows(text: str) -> None:
    found = printable(text)
    assert not controls(found) and "\n" not in found
    if not controls(text) and "\n" not in text:
        assert found == text
    assert printable(found) == found
    found.encode()


@given(texts, texts)
def test_a_console_shows_a_string_as_it_is(text: str, other: str) -> None:
    table = Table(title=printable(text), box=None, padding=0)
    table.add_column(printable(other), no_wrap=True)
    table.add_row(printable(text))
    for drawn, expected in (
        (text, printable(text, "\n")),
        (f"a {text}", printable(f"a {text}", "\n")),
        (table, printable(text)),
    ):
        for is_terminal in (False, True):
            found = shown(drawn, terminal=is_terminal)
            assert not controls(found), found
            assert expected.strip() in found, (expected, found)


@pytest.mark.parametrize("value", HOSTILE)
def test_tables_and_sentences_of_the_commands(value: str) -> None:
    out = io.StringIO()
    console = Terminal(file=out, width=400, force_terminal=False)
    columns = tuple(column.model_copy(update={"label": value}) for column in EVALUATION.columns)
    print_results(console, EVALUATION.model_copy(update={"columns": columns, "verdict": (value,)}))
    question = Question(value, 1, 1, (value,), {"1": value}, {})
    item = {"probability": 0.5, "uncertainty": 0.1, "num_paths": 1}
    print_answer(console, question, {"items": [{**item, "item_id": "1"}, {**item, "item_id": value}]})
    with StageBoard(console, {}) as board, board.stage(value):
        board.note(value)
        board.feed({"stage": "x", "event": "progress", "done": 1, "total": 2, "label": value, "at": 1e12})
    found = out.getvalue()
    assert not controls(found), found
    assert found.count(printable(value, "\n")) >= 7, found


@pytest.mark.parametrize("value", HOSTILE)
def test_errors_of_the_command_line(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise DataError(f"row {value} is wrong")

    monkeypatch.setattr("typer.main.get_command", fails)
    assert main(["data", "list"]) == 1
    found = capsys.readouterr().err
    assert found == f"thinktwice: row {printable(value)} is wrong\n" and not controls(found)


@pytest.mark.parametrize("value", [v for v in HOSTILE if not {"=", "\x00", "\ud800"} & set(v)])
def test_wrong_usage_shows_no_control_character(value: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--user", "1", "--candidates", "2", "--context", value]) == 2
    captured = capfd.readouterr()
    assert "KEY=VALUE" in captured.err and not controls(captured.err)


def test_every_command_uses_this_console_and_no_markup() -> None:
    found = []
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich.markup"):
                found.append(f"{path.relative_to(ROOT)}: imports rich.markup")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} makes a Console: use thinktwice.console.terminal")
            if isinstance(node, ast.Attribute) and node.attr == "from_markup":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} reads markup")
            if isinstance(node, ast.keyword) and node.arg == "markup" and getattr(node.value, "value", None) is True:
                found.append(f"{path.relative_to(ROOT)}: turns markup on")
    assert not found
