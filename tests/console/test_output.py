"""Sentences and tables of the terminal, at any width."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.console.terminal import LOG_WIDTH, console_here

WIDTHS = (40, 80, 110)
ROOT = Path(__file__).resolve().parents[2]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WORDS = st.text("abcdefghij0123456789[]_.%→é漢", min_size=1, max_size=45)
SENTENCES = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)


def at(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=True, highlight=False), out


def lines_of(out: io.StringIO) -> list[str]:
    return [line.rstrip() for line in ANSI.sub("", out.getvalue()).splitlines()]


@settings(max_examples=300, deadline=None)
@given(SENTENCES, st.integers(1, 130), st.integers(0, 6))
def test_a_sentence_breaks_between_words_and_nowhere_else(sentence: str, width: int, indent: int) -> None:
    console, out = at(width)
    say(console, sentence, indent=indent)
    lines = lines_of(out)
    assert " ".join(" ".join(lines).split()) == sentence
    for line in lines:
        assert line.startswith(" " * indent)
        assert cell_len(line) <= max(width, indent + 1) or len(line.split()) == 1, "only a word that is wider"
    # It is not broken where it need not be.
    if indent + cell_len(sentence) <= width:
        assert len(lines) == 1


def test_lines_and_styles_stay() -> None:
    console, out = at(20)
    say(console, Text("one two three four five six", style="bold"))
    say(console, "first\n\nthird  line")
    assert lines_of(out) == ["one two three four", "five six", "first", "", "third  line"]
    assert "\x1b[1m" in out.getvalue()


def test_what_a_log_holds_does_not_steer_the_terminal() -> None:
    console, out = at(80)
    say(console, "user \x1b[31mred\x07 [bold]x[/] \x9b1m")
    print_table(console, [Column("item\x1b[0m")], [Record(("a\x1b]0;title\x07b\nc",))])
    shown = lines_of(out)
    assert shown[0] == "user \\x1b[31mred\\x07 [bold]x[/] \\x9b1m"
    assert "a\\x1b]0;title\\x07b\\nc" in shown[-1]


CELLS = st.one_of(st.just(""), WORDS, SENTENCES)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(20, 130))
def test_a_table_cuts_nothing(data: st.DataObject, width: int) -> None:
    names = data.draw(st.lists(WORDS, min_size=2, max_size=5, unique=True))
    columns = [
        Column(n, right=data.draw(st.booleans()), wraps=i > 0 and data.draw(st.booleans())) for i, n in enumerate(names)
    ]
    records = [
        Record((data.draw(WORDS), *(data.draw(CELLS) for _ in names[1:]))) for _ in range(data.draw(st.integers(1, 2)))
    ]
    console, out = at(width)
    print_table(console, columns, records, title="a title of the table")
    lines = lines_of(out)
    shown = " ".join(" ".join(lines).split())
    assert "…" not in shown
    for record in records:
        for name, column, cell in zip(names, columns, record.cells, strict=True):
            if not column.wraps:
                # Whole, in one line or (as a sentence of a record) broken between words.
                assert " ".join(str(cell).split()) in shown
            assert all(
                word in shown for word in (*str(cell).split(), *(name.split() if cell and name != names[0] else ()))
            )
    wide = [line for line in lines if cell_len(line) > width]
    assert all(len(line.split()) <= 2 for line in wide), "only words that are wider than the terminal"


def test_a_table_that_fits_is_a_table_and_one_that_does_not_is_a_list_of_records() -> None:
    columns = [Column("field", right=False), Column("compared"), Column("why", right=False, wraps=True)]
    records = [
        Record(("the_name_of_a_field", "1,200", "served as missing, known to the store"), "bold"),
        Record(("other", "7", "")),
    ]
    console, out = at(80)
    print_table(console, columns, records)
    assert [line.split()[0] for line in lines_of(out)] == ["field", "the_name_of_a_field", "other"]
    console, out = at(30)
    print_table(console, columns, records)
    assert lines_of(out) == [
        "the_name_of_a_field",
        "  compared: 1,200",
        "  why: served as missing,",
        "  known to the store",
        "other",
        "  compared: 7",
    ]


def test_free_text_takes_several_lines_before_a_table_becomes_a_list() -> None:
    columns = [Column("field", right=False), Column("why", right=False, wraps=True)]
    console, out = at(40)
    print_table(console, columns, [Record(("device", "served as missing, known to the store, since Monday"))])
    assert lines_of(out) == [
        "field   why",
        "device  served as missing, known to the",
        "        store, since Monday",
    ]


def test_one_text_does_not_take_the_room_of_another() -> None:
    """Two columns of free text, one with a long word: neither breaks it."""
    columns = [Column("", right=False), Column("before", right=False, wraps=True), Column("", right=False, wraps=True)]
    word = "w" * 40
    console, out = at(80)
    print_table(console, columns, [Record(("device", f"{word} and some more", "of these there are many words " * 6))])
    assert word in out.getvalue() and lines_of(out)[1].startswith("device")


def test_without_a_terminal_there_is_room(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "33")
    say(console_here(), "word " * 100)
    assert max(map(len, capsys.readouterr().out.splitlines())) > LOG_WIDTH - 6


def in_terminal(arguments: list[str], width: int, cwd: Path) -> tuple[int, str]:
    """Run the command line in a real terminal of that width; its exit status and what the terminal got."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "thinktwice", *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    found = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        found += part
    os.close(master)
    return process.wait(timeout=60), ANSI.sub("", found.decode())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["load", "--help"], 0, "[default: http://127.0.0.1:8080]"),
        (["data", "list"], 0, "simulated ad log with the true click probability of every row"),
        (
            ["evaluate"],
            1,
            "contains no champion: run 'thinktwice pipeline run' first, or set --state, --work or --bundle",
        ),
        (["experiment", "status", "x"], 1, "no record of the experiment 'x' in .thinktwice/experiments"),
    ],
)
def test_a_real_terminal_breaks_no_word(
    arguments: list[str], status: int, words: str, width: int, tmp_path: Path
) -> None:
    code, shown = in_terminal(arguments, width, tmp_path)
    assert code == status
    lines = shown.split("\r\n")
    assert max(map(cell_len, lines)) <= width, "the terminal itself would break such a line anywhere"
    assert words in " ".join(shown.split())
