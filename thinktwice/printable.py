"""Text from data, made safe for a terminal or a log line."""

from __future__ import annotations

import unicodedata

SPACES = "Zs"  # Unicode category of spaces


def printable(value: object, keep: str = "") -> str:
    r"""``str(value)`` with invisible and control characters written as Python escapes (``\x1b``).

    These are the control characters (escape sequences, line breaks), the format characters (including those that reverse
    the direction of text), line and paragraph separators, lone surrogates and unassigned code points. The value can then
    neither control the terminal nor look like another value or another line.

    Args:
        value: anything.
        keep: characters that are not escaped, such as the line breaks of our own text.
    """
    return "".join(c if c in keep or _shows(c) else c.encode("unicode_escape").decode("ascii") for c in str(value))


def _shows(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == SPACES
