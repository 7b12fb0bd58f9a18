"""Printing of commands: sentences that break between words, and tables without cut names.

A table that does not fit a narrow terminal is shown record by record, one `name: value` per line. Without a terminal (a
pipe, a CI log) the width is `terminal.LOG_WIDTH` columns.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from thinktwice.console.terminal import LINE_BREAKS, console_here
from thinktwice.printable import printable

GAP = 2  # columns between two columns of a table
ROOMY = 18  # minimum width of a column of free text; with less the table is too wide


def shown(path: Path) -> str:
    """The shortest form of the path that works in this folder."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def say(console: Console, sentence: str | Text, *, indent: int = 0, style: str = "") -> None:
    """Print a sentence. Lines break between words; a word wider than the console is not broken."""
    text = Text(printable(sentence, LINE_BREAKS), style=style) if isinstance(sentence, str) else sentence
    width = max(1, console.width - indent)
    for line in text.split("\n", allow_blank=True):
        for part in _wrapped(line, width):
            console.print(Text(" " * indent).append_text(part), soft_wrap=True)


def _wrapped(line: Text, width: int) -> list[Text]:
    """The line in parts of at most `width` columns. rich would break or cut a wider word."""
    parts, start, end, used = [], 0, 0, 0
    for word in re.finditer(r"\s*\S+", line.plain):
        if end > start and used + cell_len(word[0]) > width:
            parts.append(line[start:end])
            start = word.start() + len(word[0]) - len(word[0].lstrip())
            used = 0
        used += cell_len(line.plain[max(start, word.start()) : word.end()])
        end = word.end()
    parts.append(line[start:end])
    return parts


def tell(sentence: str, *, indent: int = 0) -> None:
    """Print a sentence on stdout; in one line if stdout is not a terminal."""
    if sys.stdout.isatty():
        say(console_here(), sentence, indent=indent)
    else:
        print(" " * indent + printable(sentence, LINE_BREAKS))  # noqa: T201


@dataclass(frozen=True)
class Column:
    """A column of a table. A `wraps` column contains free text and may take several lines; other columns are never cut."""

    name: str
    right: bool = True
    wraps: bool = False


@dataclass(frozen=True)
class Record:
    """A row of a table: one cell per column, and a style for the whole row."""

    cells: Sequence[str | Text]
    style: str = ""


def print_table(console: Console, columns: Sequence[Column], records: Sequence[Record], *, title: str = "") -> None:
    """Print a table, or its records one by one if it does not fit the width."""
    if title:
        say(console, title, style="bold")
    widths = _widths(console, columns, records)
    if widths is not None:
        console.print(_table(columns, records, widths))
        return
    for record in records:
        _print_record(console, columns, record)


def _table(columns: Sequence[Column], records: Sequence[Record], widths: Sequence[int]) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    table.show_header = any(column.name for column in columns)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            Text(printable(column.name, LINE_BREAKS)),
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            overflow="fold",
            width=width,
        )
    for record in records:
        cells: list[RenderableType] = [_cell(c) for c in record.cells]
        table.add_row(*cells, style=record.style)
    return table


def _widths(console: Console, columns: Sequence[Column], records: Sequence[Record]) -> list[int] | None:
    """The width of every column, or None if there is no room for every cell and a readable width of free text.

    rich would shrink the widest column first, and break words there while another column has room.
    """
    needed, least = [], []
    for index, column in enumerate(columns):
        texts = [
            *printable(column.name, LINE_BREAKS).split("\n"),
            *(_cell(record.cells[index]).plain for record in records),
        ]
        needed.append(max(map(cell_len, texts)))
        longest = max((cell_len(word) for text in texts for word in text.split()), default=0)
        least.append(max(longest, min(ROOMY, needed[-1])) if column.wraps else needed[-1])
    spare = console.width - GAP * (len(columns) - 1) - sum(least)
    if spare < 0:
        return None
    excess = sum(needed) - sum(least)
    share = min(1.0, spare / excess) if excess else 0.0
    return [low + int(share * (high - low)) for low, high in zip(least, needed, strict=True)]


def _cell(cell: str | Text, style: str = "") -> Text:
    return Text(printable(cell), style=style) if isinstance(cell, str) else cell


def _print_record(console: Console, columns: Sequence[Column], record: Record) -> None:
    """The first cell as a heading, the others below it by name; empty cells are left out."""
    head, *cells = record.cells
    title = _cell(head).copy()
    title.stylize("bold")
    say(console, title if title.plain.strip() else Text("(no name)", style="dim"))
    for column, cell in zip(columns[1:], cells, strict=True):
        value = _cell(cell, record.style)
        if value.plain.strip():
            name = " ".join(printable(column.name, LINE_BREAKS).split())
            say(console, Text(f"{name}: ", style="dim") + value if name else value, indent=2)
