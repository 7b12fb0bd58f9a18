"""The kind of the values of a column: categories, truth values, numbers, lists or vectors."""

from __future__ import annotations

from collections import Counter

import polars as pl

from thinktwice.data.infer import names
from thinktwice.data.infer.measure import ColumnFacts, Measured
from thinktwice.data.infer.roles import FieldKind
from thinktwice.data.infer.times import time_format
from thinktwice.schema.numbers import SPACE
from thinktwice.schema.truth import TRUTH_WORDS

SEPARATORS = ("|", ";")  # between the categories of a text
MIN_EACH = 5  # rows in which each of them occurs in the sample, so that the list is likely to be complete
FEW_NUMBERS = 12  # different whole numbers up to which a column is a category unless its name says otherwise


def kinds_of(measured: Measured, columns: list[str]) -> dict[str, tuple[FieldKind, str]]:
    """Kind and reason of every column that is no time, list or constant. Columns I1, I2, ... of whole numbers share a kind."""
    out: dict[str, tuple[FieldKind, str]] = {}
    for name in columns:
        of = measured.facts[name]
        if of.constant or of.is_list or of.is_time or (not of.numeric and time_format(measured, of) is not None):
            continue
        out[name] = _kind(measured, of)
    families: dict[str, list[str]] = {}
    for name in out:
        prefix = names.family(name)
        if prefix is not None and measured.facts[name].numeric and not of_two(measured.facts[name]):
            families.setdefault(prefix, []).append(name)
    for prefix, members in families.items():
        votes = Counter(out[name][0] for name in members)
        if len(members) > 2 and len(votes) > 1 and votes["numeric"] >= len(members) / 2:
            for name in members:
                if out[name][0] == "categorical":
                    out[name] = ("numeric", f"whole numbers, as most of {prefix}1, {prefix}2, ...")
    return out


def _kind(measured: Measured, of: ColumnFacts) -> tuple[FieldKind, str]:
    size = "more than 100" if of.vocabulary is None else str(len(of.vocabulary))
    if truth := truth_words(of):
        return "boolean", truth
    if not of.numeric:
        return "categorical", f"text, {size} values"
    if of.vocabulary == {"0", "1"}:
        return "categorical", "0 and 1; with kind: boolean a request may send true and false"
    if of_two(of):
        return "categorical", "two values"
    named = set(names.glued(of.name))
    if not of.whole:
        return "numeric", "numbers with a fraction"
    few = of.vocabulary is not None and len(of.vocabulary) <= FEW_NUMBERS
    if named & set(names.KEY) or (named & set(names.CATEGORY) and not named & set(names.NUMBER)):
        return "categorical", f"whole numbers, {size} values, and its name says that they are codes"
    if named & set(names.NUMBER):
        return (
            ("categorical", f"{size} whole numbers")
            if few
            else ("numeric", "whole numbers, and its name says that they are measured")
        )
    if few:
        return "categorical", f"{size} whole numbers"
    # Counts crowd at their low end; codes are spread over their range.
    number = measured.numbers(of.name).drop_nulls()
    middle = (of.minimum + of.maximum) / 2
    low = float((number <= middle).mean() or 0)  # type: ignore[arg-type]
    if of.minimum <= 1 and low > 0.8:
        return "numeric", "whole numbers that crowd at their low end, as counts do"
    return "categorical", f"whole numbers, {size} values, spread over their range as codes are"


def of_two(of: ColumnFacts) -> bool:
    """Whether the column has two values at most."""
    return of.vocabulary is not None and len(of.vocabulary) <= 2


def truth_words(of: ColumnFacts) -> str:
    """What to say about a column of truth values, of text that spells them; empty for another column."""
    spellings = sorted(of.vocabulary or ())
    words = {TRUTH_WORDS.get(value.strip(SPACE).lower()) for value in spellings}
    if None in words or len(words) < 2 or all(is_float(value) for value in spellings):
        return ""
    written = "" if spellings == ["false", "true"] else f", written {', '.join(spellings)}"
    return f"truth values{written}; a request may send true and false in any of their spellings"


def is_float(text: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def list_separator(of: ColumnFacts, text: pl.Series) -> str | None:
    """The separator of a column of several categories, as :meth:`Measured.text` writes it; None for other columns."""
    if of.is_list:
        return "," if not numbers_inside(of) else None
    if of.numeric or of.is_time:
        return None
    present = text.drop_nulls()
    for separator in SEPARATORS:
        several = present.filter(present.str.contains(separator, literal=True))
        if len(several) < 0.1 * len(present) or len(several) < MIN_EACH:
            continue
        combinations, values = present.n_unique(), present.str.split(separator).explode().n_unique()
        if values < 0.7 * combinations and values < 0.2 * len(present):
            return separator
    return None


def is_vector_text(text: pl.Series) -> bool:
    """Whether all texts are numbers in square brackets."""
    head = text.drop_nulls().head(1000)
    return len(head) > 0 and bool(
        head.str.contains(
            r"^\[\s*-?[0-9.]+(?:[eE][-+]?[0-9]+)?(?:\s*[, ]\s*-?[0-9.]+(?:[eE][-+]?[0-9]+)?)+\s*\]$"
        ).all()
    )


def numbers_inside(of: ColumnFacts) -> bool:
    """Whether the elements of a list are numbers, or unknown."""
    inner = of.type.value_type if hasattr(of.type, "value_type") else None
    return inner is None or any(word in str(inner) for word in ("int", "float", "double", "decimal"))
