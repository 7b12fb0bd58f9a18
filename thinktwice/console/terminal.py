"""The console of every command: strings are shown verbatim, wherever they come from."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from thinktwice.printable import printable

LINE_BREAKS = "\n"  # in our own sentences; values go through `printable` first
LOG_WIDTH = 120  # columns without a terminal


class Terminal(Console):
    """A console without markup and emoji codes in strings, cells and titles of tables: an id ``[red]x`` or ``:apple:`` must
    not be shown as another id. Style is set by ``style=`` and :class:`rich.text.Text`.

    Characters that control a terminal are escaped.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See :class:`rich.console.Console`, which turns every string into a text."""
        return super().render_str(printable(text, LINE_BREAKS), **options)


def console_here(*, stderr: bool = False) -> Terminal:
    """A console as wide as the terminal, or :data:`LOG_WIDTH` columns wide without one."""
    console = Terminal(stderr=stderr)
    return console if console.is_terminal else Terminal(stderr=stderr, width=LOG_WIDTH)
