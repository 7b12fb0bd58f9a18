"""Columns whose rows have several ids of items: perhaps the history of the user, which only the owner of the log knows."""

from __future__ import annotations

import polars as pl

from thinktwice.data.infer.measure import ColumnFacts

SEPARATORS = (" ", ",", "|", ";", "\t", "/", "-")
ARE_IDS = 0.95  # share of the elements of such a column that are ids of the log's items
SEVERAL = 0.1  # share of its rows with two elements or more
MIN_SHARE = 0.05  # share of the items that it names; codes of a few categories may be spelled like some ids
MIN_IDS = 10


def question_about_ids(of: ColumnFacts, text: pl.Series, items: pl.Series) -> str:
    """What to ask about a column of lists, or texts of several words, that are ids of items; empty for another column.

    Args:
        text: the spellings [S] of the column in the sample, elements of lists with commas between them.
        items: the ids [S] of the items in the sample.
    """
    if of.is_time or (of.numeric and not of.is_list):
        return ""
    known = items.drop_nulls().unique()
    present = text.drop_nulls().filter(text.drop_nulls() != "")
    for separator in (",",) if of.is_list else SEPARATORS:
        several = present.filter(present.str.contains(separator, literal=True))
        if not len(present) or len(several) < SEVERAL * len(present):
            continue
        elements = several.str.split(separator).explode().str.strip_chars()
        elements = elements.filter(elements != "")
        ids = elements.filter(elements.is_in(known.implode()))
        if len(ids) >= ARE_IDS * len(elements) and ids.n_unique() >= max(MIN_IDS, MIN_SHARE * len(known)):
            return _question(of, separator, int(several.str.count_matches(separator, literal=True).max() or 0) + 1)  # type: ignore[arg-type]
    return ""


def _question(of: ColumnFacts, separator: str, most: int) -> str:
    between = "" if of.is_list else f" with {separator!r} between them"
    written = "" if of.is_list or separator == "|" else f", separator: {separator!r}"
    return (
        f"Column {of.name!r} has up to {most} ids of items in a row{between}. Are they the earlier items of the user? Then remove its field "
        f"and add a sequence with column: {of.name}{written}, order: newest_first or newest_last. Are they several values of one field? "
        f"Then the field has kind: list{written}."
    )
