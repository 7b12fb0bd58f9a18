"""Lists of rows to score that are written as in the log: texts with the separator of the schema, and sequences in the log's order."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from thinktwice.schema import LogSchema
from thinktwice.schema.elements import read_vectors
from thinktwice.schema.fields import ModelField, Sequence
from thinktwice.schema.values import one_array
from thinktwice.schema.weights import read_weights
from thinktwice.validate.lists import LIST, SPLIT, elements_of, newest_first, read_lists


def separator_of(f: ModelField, schema: LogSchema) -> str:
    """What separates the elements of a list, a sequence or weights in a text."""
    by_name = {field.name: field.separated_by for field in schema.fields}
    by_name |= {sequence.name: sequence.separated_by for sequence in schema.sequences}
    return "," if f.kind == "vector" else by_name[f.of if f.kind == "weights" else f.name]


def lists_of_texts(f: ModelField, schema: LogSchema, values: pa.ChunkedArray) -> tuple[pa.Array, pl.Series]:
    """Texts [R] of lists as lists, and which of them [R] may have the separator inside an element."""
    text, separator = one_array(values), separator_of(f, schema)
    clean = pl.repeat(False, len(text), eager=True)
    if f.kind == "vector":
        return read_vectors(text).to_arrow(), clean
    if f.kind == "weights":
        return read_weights(text, separator).to_arrow(), clean
    split = dict(read_lists(text, separator))[SPLIT + separator]
    sequence = next((s for s in schema.sequences if s.name == f.name), None)
    # The elements of a list keep their places, because its weights are parallel to them.
    return (elements_of(text, separator).to_arrow() if sequence is None else read_sequence(text, sequence)), split


def read_sequence(values: pa.Array, sequence: Sequence) -> pa.Array:
    """A sequence [R] as the log has it, lists or texts: its newest values, newest first."""
    lists = dict(read_lists(values, sequence.separated_by))[LIST + sequence.separated_by]
    return pl.select(newest_first(pl.lit(lists), sequence)).to_series().to_arrow()
