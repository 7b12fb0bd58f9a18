"""Reading of truth values of every type in a log, a request or Python.

=====================  ==========================================================================================
value                  its spelling
=====================  ==========================================================================================
missing                none: null, NaN, the empty text and empty bytes
truth value            ``true``, ``false``
number                 1 is ``true``, 0 is ``false``
text                   ``true``, ``t``, ``yes``, ``y``, ``on``, ``1``, ``1.0`` are ``true``; ``false``, ``f``, ``no``, ``n``, ``off``, ``0``, ``0.0``
                       are ``false``; in any case, white space around it allowed; bytes that are such a text likewise
anything else          no truth value
=====================  ==========================================================================================

:func:`truth` reads one Python or numpy value, :func:`truths` a whole Arrow array; a property test compares them.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from thinktwice.schema.numbers import SPACE
from thinktwice.schema.values import spell, spelled

TRUTH_WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1", "1.0"), "true"),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0", "0.0"), "false"),
}
#: All texts that are read, for JSON Schema.
TRUTH_PATTERN = "|".join(
    "".join(f"[{c}{c.upper()}]" if c.isalpha() else c.replace(".", r"\.") for c in word) for word in TRUTH_WORDS
)


def truth(value: Any) -> str | None:
    """``true`` or ``false``, None for a missing value.

    Raises:
        ValueError: the value is no truth value.
    """
    try:
        text = spell(value)
    except TypeError as error:
        raise ValueError("is not a truth value") from error
    if text is None:
        return None
    found = TRUTH_WORDS.get(text.strip(SPACE).lower())
    if found is None:
        raise ValueError("is not a truth value")
    return found


def truths(values: pa.Array | pa.ChunkedArray) -> pl.Series:
    """``true`` and ``false``, null for missing values and anything that is no truth value."""
    text = spelled(values).str.strip_chars(SPACE).str.to_lowercase()
    return text.replace_strict(TRUTH_WORDS, default=None, return_dtype=pl.String)
