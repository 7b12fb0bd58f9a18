"""The label: which column says what a click is, and from which value on."""

from __future__ import annotations

import polars as pl

from thinktwice.data.infer import names
from thinktwice.data.infer.measure import ColumnFacts, Measured
from thinktwice.data.infer.roles import LabelRole
from thinktwice.errors import DataError
from thinktwice.schema.columns import known_column


def find_label(measured: Measured, given: str | None, taken: set[str | None]) -> LabelRole:
    """The label: the ``given`` column, or one that is not ``taken``, by its values and its name.

    Raises:
        DataError: no column can be the label, or the given one cannot.
    """
    facts = measured.facts
    if given is not None:
        if given not in facts:
            raise DataError(f"--label {given}: there is no such column; {known_column(given, list(facts))}")
        return _described(measured, facts[given], f"--label {given}")
    binary = [of for of in facts.values() if of.name not in taken and _is_binary(of)]
    named = [(rank, of) for of in binary if (rank := names.rank(of.name, names.LABEL)) is not None]
    if named:
        best = min(named, key=lambda pair: (pair[0], len(pair[1].name)))[1]
        return _described(measured, best, "0 and 1, and its name")
    rated = [
        of
        for of in facts.values()
        if of.name not in taken and of.numeric and names.rank(of.name, names.RATING) is not None
    ]
    rated = [of for of in rated if of.vocabulary is not None and 2 < len(of.vocabulary) <= 21]
    if rated:
        return _described(measured, rated[0], "a rating, by its name and its few values")
    if len(binary) == 1:
        return _described(measured, binary[0], "the only column of 0 and 1")
    constant = [of.name for of in facts.values() if of.constant and names.rank(of.name, names.LABEL) is not None]
    if constant:
        value = next(iter(facts[constant[0]].vocabulary or ()), "none")
        raise DataError(
            f"column {constant[0]!r} looks like the label, but its only value is {value!r}: a click model needs clicks and non-clicks; "
            "add the other rows, or choose another column with --label"
        )
    choices = f" (0 and 1 are in {', '.join(of.name for of in binary[:8])})" if binary else ""
    raise DataError(
        f"no column looks like the label{choices}: name it with --label. The columns are: {', '.join(facts)}"
    )


def _is_binary(of: ColumnFacts) -> bool:
    return of.vocabulary is not None and of.vocabulary in ({"0", "1"}, {"true", "false"}, {"True", "False"})


def _described(measured: Measured, of: ColumnFacts, reason: str) -> LabelRole:
    if of.constant:
        only = next(iter(of.vocabulary or ()), "none")
        raise DataError(
            f"label {of.name!r} has one value, {only!r}: a click model needs clicks and non-clicks; add the other rows"
        )
    if not of.numeric and not _is_binary(of):
        raise DataError(f"label {of.name!r} is not a number: write 0 and 1, or choose another column with --label")
    threshold = None
    if not _is_binary(of):
        threshold = (
            4.0 if of.minimum >= 0 and of.maximum == 5 else round(of.minimum + 0.75 * (of.maximum - of.minimum), 3)
        )
    role = LabelRole(of.name, threshold, reason, 0.0, of.missing + of.not_numbers)
    clicked = clicked_of(measured, role)
    role.click_rate = float(clicked.mean() or 0)  # type: ignore[arg-type]
    return role


def clicked_of(measured: Measured, label: LabelRole) -> pl.Series:
    """1 for a click [S], by the label."""
    text = measured.text(label.column).str.to_lowercase()
    number = measured.numbers(label.column)
    number = pl.select(pl.when(text == "true").then(1.0).when(text == "false").then(0.0).otherwise(number)).to_series()
    return (number >= (1.0 if label.threshold is None else label.threshold)).cast(pl.Int64)
