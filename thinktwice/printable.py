"""Text from data, safe to show on a terminal or in a line of a log."""

from __future__ import annotations

import unicodedata

SPACES = "Zs"  # category of the space and of its wide and narrow relatives


def printable(value: object, keep: str = "") -> str:
    r"""``str(value)`` with every character escaped that shows nothing or controls what is shown, as Python writes it (``\x1b``).

    These are the control characters (escape sequences, line breaks), the format characters (among them those that reverse the
    direction of text), line and paragraph separators, lone surrogates and unassigned code points. Such a value can then neither
    drive the terminal, nor pass for another value or for a line of ours.

    Args:
        value: anything.
        keep: characters that stay, such as the line breaks of a text that is ours.
    """
    return "".join(c if c in keep or _shows(c) else c.encode("unicode_escape").decode("ascii") for c in str(value))


def _shows(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == SPACES
