"""The console of every command: a string is shown as it is, whoever wrote it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from thinktwice.printable import printable

LINE_BREAKS = "\n"  # of our own sentences; a value that may hold some goes through `printable` first
LOG_WIDTH = 120  # columns where there is no terminal to ask


class Terminal(Console):
    """Reads no markup and no emoji codes in strings, nor in the cells and titles of tables: an id ``[red]x`` or ``:apple:`` must
    not be shown as another id. Style is given by ``style=`` and :class:`rich.text.Text`.

    Characters that control a terminal are escaped.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See :class:`rich.console.Console`, which makes every string into a text here."""
        return super().render_str(printable(text, LINE_BREAKS), **options)


def console_here(*, stderr: bool = False) -> Terminal:
    """A console as wide as the terminal, or wide enough to read where there is none."""
    console = Terminal(stderr=stderr)
    return console if console.is_terminal else Terminal(stderr=stderr, width=LOG_WIDTH)
