"""One pass over a log: exact bounds, missing values and small vocabularies of every column, and a sample of rows.

The sample takes every n-th row of the whole log, at most :data:`SAMPLE_ROWS` of them, so memory is bounded at any length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.types as pt

from thinktwice.data.reading import Reading
from thinktwice.progress import track
from thinktwice.schema.columns import is_bytes, is_text, stored
from thinktwice.schema.numbers import numbers
from thinktwice.schema.times import is_time
from thinktwice.schema.values import as_series, can_spell, one_array, spelled

SAMPLE_ROWS = 400_000
MAX_VOCABULARY = 100  # values of a column that are kept one by one
_MOSTLY = 0.995  # share of numbers in a text column of numbers


@dataclass
class ColumnFacts:
    """What the whole log says about a column.

    ``numeric``: all values are numbers (as text or not); ``whole``: integers; then ``minimum`` and ``maximum`` are theirs.
    ``vocabulary``: all spellings, None if there are more than :data:`MAX_VOCABULARY`. ``padded``: a number has leading zeros.
    """

    name: str
    type: pa.DataType
    rows: int = 0
    missing: int = 0
    not_numbers: int = 0
    whole: bool = True
    padded: bool = False
    minimum: float = float("inf")
    maximum: float = float("-inf")
    vocabulary: set[str] | None = field(default_factory=set)

    @property
    def present(self) -> int:
        return self.rows - self.missing

    @property
    def numeric(self) -> bool:
        return self.present > 0 and not self.padded and self.not_numbers <= (1 - _MOSTLY) * self.present

    @property
    def constant(self) -> bool:
        return self.vocabulary is not None and len(self.vocabulary) <= 1

    @property
    def is_list(self) -> bool:
        kind = stored(self.type)
        return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))

    @property
    def is_time(self) -> bool:
        return is_time(stored(self.type))


@dataclass(frozen=True)
class Measured:
    """Facts of all columns, and the sample: rows [S] of the log with its columns."""

    facts: dict[str, ColumnFacts]
    sample: pa.Table
    rows: int
    unparsable: int

    def text(self, column: str) -> pl.Series:
        """The spellings [S] of a column in the sample, null for a missing value."""
        values = one_array(self.sample.column(column))
        kind = stored(values.type)
        if can_spell(values.type):
            return spelled(values)
        if self.facts[column].is_list and not pt.is_nested(kind.value_type):
            return as_series(_plain(values)).cast(pl.List(pl.String)).list.join(",")
        return pl.Series([None] * len(values), dtype=pl.String)

    def numbers(self, column: str) -> pl.Series:
        """The numbers [S] of a column in the sample, null for anything else."""
        return numbers(_plain(one_array(self.sample.column(column))))


def measure(reading: Reading) -> Measured:
    """Read the whole log once."""
    facts = {f.name: ColumnFacts(f.name, f.type) for f in reading.columns}
    pieces: list[pa.Table] = []
    stride, kept, rows, unparsable = 1, 0, 0, 0
    for chunk in track(reading.chunks(), stage="infer", total=reading.num_chunks):
        table = chunk.table
        unparsable += len(chunk.unparsable)
        for name, of in facts.items():
            _add(of, table.column(name))
        first = -rows % stride
        pieces.append(table.take(np.arange(first, table.num_rows, stride)) if stride > 1 else table)
        kept += pieces[-1].num_rows
        rows += table.num_rows
        while kept > 2 * SAMPLE_ROWS:
            whole = pa.concat_tables(pieces)
            pieces = [whole.take(np.arange(0, whole.num_rows, 2))]
            stride, kept = 2 * stride, pieces[0].num_rows
    sample = pa.concat_tables(pieces) if pieces else reading.columns.empty_table()
    if sample.num_rows > SAMPLE_ROWS:
        sample = sample.take(np.linspace(0, sample.num_rows - 1, SAMPLE_ROWS).astype(np.int64))
    return Measured(facts, sample, rows, unparsable)


def _add(facts: ColumnFacts, column: pa.ChunkedArray) -> None:
    values = _plain(one_array(column))
    facts.rows += len(values)
    kind = values.type
    if is_text(kind) or is_bytes(kind):
        text = spelled(values)
        facts.missing += text.null_count()
        if facts.not_numbers <= 1000:
            _add_numbers(facts, numbers(values), text)
        else:
            facts.not_numbers += len(text) - text.null_count()
        _add_words(facts, text)
        return
    if pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) or pt.is_boolean(kind):
        number = numbers(values)
        facts.missing += number.null_count()
        _add_numbers(facts, number, None)
    elif not can_spell(kind):
        facts.missing += values.null_count
        facts.not_numbers += len(values) - values.null_count
        facts.vocabulary = None
        return
    else:
        facts.missing += values.null_count
        facts.not_numbers += len(values) - values.null_count
    if facts.vocabulary is not None:
        _add_words(facts, spelled(values.unique()))


def _add_numbers(facts: ColumnFacts, number: pl.Series, text: pl.Series | None) -> None:
    present = number.drop_nulls()
    if text is not None:
        facts.not_numbers += len(text) - text.null_count() - len(present)
        facts.padded |= bool(text.str.contains(r"^-?0[0-9]").any())
    if not len(present):
        return
    facts.minimum = min(facts.minimum, float(present.min()))  # type: ignore[arg-type]
    facts.maximum = max(facts.maximum, float(present.max()))  # type: ignore[arg-type]
    facts.whole = facts.whole and bool((present == present.round()).all())


def _add_words(facts: ColumnFacts, text: pl.Series) -> None:
    if facts.vocabulary is None:
        return
    facts.vocabulary |= set(text.drop_nulls().unique().to_list()) if len(text) else set()
    if len(facts.vocabulary) > MAX_VOCABULARY:
        facts.vocabulary = None


def _plain(values: pa.Array) -> pa.Array:
    values = values.dictionary_decode() if pt.is_dictionary(values.type) else values
    return values.storage if isinstance(values, pa.ExtensionArray) else values
