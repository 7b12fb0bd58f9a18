"""Reading of lists of categories and of the weights of their elements, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from thinktwice.schema.elements import read_elements
from thinktwice.schema.fields import Sequence
from thinktwice.schema.limits import text_is_wrong
from thinktwice.schema.numbers import holds_text
from thinktwice.schema.values import spelled, texts
from thinktwice.schema.weights import read_weights, uneven
from thinktwice.validate.column_rules import NEGATIVE, NO_NUMBER, UNEVEN

LIST, SPLIT = "list ", "split "  # measures, each followed by the separator
WRONG = "wrong text"
WEIGHTS = "weights"


def read_lists(values: pa.Array, separator: str) -> Iterator[tuple[str, pl.Series]]:
    """The elements of each list or text, spelled, without missing ones; null for a missing list. A text whose quotes are not in
    pairs within its elements may have the separator inside an element."""
    lists, element = elements_of(values, separator), pl.element()
    split = lists.list.eval(element.str.count_matches('"', literal=True) % 2 == 1).list.any().fill_null(False)
    of_text = holds_text(_stored(values).type)
    yield SPLIT + separator, split if of_text else pl.repeat(False, len(values), eager=True)
    lists = lists.list.eval(element.filter(element.is_not_null() & (element != "")))
    wrong = lists.list.eval(text_is_wrong(element)).list.any().fill_null(False)
    yield from ((LIST + separator, lists), (WRONG + separator, wrong))


def read_element_weights(lists: pa.Array, weights: pa.Array, separator: str) -> Iterator[tuple[str, pl.Series]]:
    """The weights of the elements that :func:`read_lists` returns, null for a row without weights, and the checks of
    :data:`~thinktwice.validate.column_rules.WEIGHT_CHECKS`: [R] each."""
    elements, given, element = elements_of(lists, separator), read_weights(_stored(weights), separator), pl.element()
    differ = uneven(elements.list.len(), given)
    yield UNEVEN, differ
    yield NO_NUMBER, given.list.eval(element.is_null()).list.any().fill_null(False)
    yield NEGATIVE, given.list.eval(element < 0).list.any().fill_null(False)
    yield WEIGHTS, _of_present(elements, given, differ)


def _of_present(elements: pl.Series, weights: pl.Series, differ: pl.Series) -> pl.Series:
    """The weights of the elements that are not missing; null where the numbers of elements and weights ``differ``."""
    rows = pl.DataFrame({"element": elements, "weight": weights}).with_row_index("row")
    rows = rows.filter(weights.is_not_null() & ~differ)
    flat = rows.explode("element", "weight", empty_as_null=True, keep_nulls=True)
    kept = flat.filter(pl.col("element").is_not_null() & (pl.col("element") != ""))
    found = kept.group_by("row", maintain_order=True).agg("weight")
    every = pl.DataFrame({"row": pl.arange(len(elements), dtype=pl.UInt32, eager=True)})
    return every.join(found, on="row", how="left", maintain_order="left")["weight"]


def newest_first(values: pl.Expr, sequence: Sequence) -> pl.Expr:
    """The newest values of a sequence column, newest first."""
    values = values.list.reverse() if sequence.order == "newest_last" else values
    return values.list.head(sequence.length)


def _stored(values: pa.Array) -> pa.Array:
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def elements_of(values: pa.Array, separator: str) -> pl.Series:
    """The elements of each list or text, spelled, with missing ones (null or empty)."""
    values = _stored(values)
    if pa.types.is_null(values.type):
        return pl.Series([None] * len(values), dtype=pl.List(pl.String))
    if holds_text(values.type):
        text = texts(values)
        return pl.select(pl.when(text != "").then(pl.lit(text)).otherwise(None).str.split(separator)).to_series()
    return read_elements(values, spelled)
