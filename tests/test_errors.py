"""Every error says what to do next, and the commands that it names exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tests.test_cli import ROOT, walk
from thinktwice import errors
from thinktwice.cli import app

ROOMS = ("thinktwice", "feature_repo", "components", "pipelines", "serving", "demo")
#: Classes of errors that a user can mend; RequestError and OverloadedError are answers with a field or a time, and lost rows are a bug.
MENDED = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ThinktwiceError)
} - {"RequestError", "OverloadedError", "RowsLostError"}
#: Imperatives with which these sentences say what to do.
VERBS = (
    "validate|publish|drop|join|log|report|compute|deploy|clean|"
    "add|allow|apply|ask|bless|build|call|change|check|choose|collect|compare|compile|connect|copy|correct|create|"
    "decide|define|delete|describe|download|enable|encode|fill|find|fit|fix|free|get|give|import|include|increase|"
    "ingest|install|keep|leave|list|look|lower|make|materialize|mend|mount|move|name|omit|open|package|pass|plan|"
    "point|pre-train|put|raise|read|rebuild|record|reduce|remove|rename|render|repeat|replace|restart|restore|"
    "retry|roll|run|save|see|send|set|shorten|show|sign|simulate|split|start|stop|supply|take|train|try|unset|"
    "update|upgrade|upload|use|verify|wait|write"
)
INSTRUCTION = re.compile(rf"(?:^|[:;,(]\s*|\b(?:or|and|to|then)\s+)(?:{VERBS})\b|`[^`]+`|--[a-z]")


def sentence(node: ast.expr) -> str:
    """The text of a message; {} for what is computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return sentence(node.left) + sentence(node.right)
    if isinstance(node, ast.IfExp):
        return f"{sentence(node.body)}: {sentence(node.orelse)}"
    return "{}"


def raised(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, class and message of every error that is raised with a message."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            of: Any = node.exc.func
            yield node.lineno, getattr(of, "id", getattr(of, "attr", "")), sentence(node.exc.args[0])


def messages() -> Iterator[tuple[str, str]]:
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            for line, kind, text in raised(file.read_text(encoding="utf-8")):
                if kind in MENDED:
                    yield f"{file.relative_to(ROOT)}:{line}", text


def says_what_to_do(text: str) -> bool:
    """Whether a message has an instruction; one that ends with computed text may have it there."""
    return bool(INSTRUCTION.search(text)) or text.rstrip().endswith("{}")


def test_every_error_says_what_to_do() -> None:
    found = list(messages())
    assert len(found) > 500
    assert [f"{where}: {text}" for where, text in found if not says_what_to_do(text)] == []


@pytest.mark.parametrize(
    ("text", "so"),
    [
        ("the log {} is empty: give the whole file", True),
        ("{}: run `thinktwice serve` first", True),
        ("the record is empty", False),
        ("the file is damaged ({})", False),
        ("is the gateway running?", False),
        ("{}", True),
    ],
)
def test_the_scan_tells_instructions_from_complaints(text: str, so: bool) -> None:
    assert says_what_to_do(text) == so


def test_every_command_that_an_error_names_exists() -> None:
    commands = {path for path, _ in walk(typer.main.get_command(app))}
    named = [
        (where, tuple(words.split()))
        for where, text in messages()
        for words in re.findall(r"thinktwice((?: [a-z][a-z-]+)+)", text)
        if "`thinktwice" + words in text
    ]
    assert len(named) > 20
    unknown = [
        f"{where}: thinktwice {' '.join(words)}"
        for where, words in named
        if words[:2] not in commands
        and words[:1]
        not in {path for path in commands if len(path) == 1 and not any(p[:1] == path and len(p) > 1 for p in commands)}
    ]
    assert unknown == []
